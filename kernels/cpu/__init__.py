"""C kernels: compiled on first use, over weights laid out in panels."""
