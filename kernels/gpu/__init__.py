"""Triton kernels over packed weights, as operators of torch, tuned on first use."""
