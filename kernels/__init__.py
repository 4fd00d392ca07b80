"""Multiplying by packed low-bit weights: `matmul(inputs, packed)` is all that the rest of the product calls.

This package shares its name with an unrelated package on PyPI that transformers probes for, so this file
imports neither torch nor triton and defines no version (docs/architecture.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from kernels.packing import PackedWeight


def matmul(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """inputs (..., in) times the transposed packed weight (out, in): (..., out), in the dtype of inputs."""
    from kernels import reference  # noqa: PLC0415  keeps this package importable without torch

    return reference.matmul(inputs, packed)


def backend() -> str:
    """Name of the implementation that matmul uses, for people."""
    return "torch, packed weights"
