"""Multiplying by packed low-bit weights.

`matmul(inputs, packed)` is the definition, in plain torch; `prepare(packed)` gives the fastest form of one weight
for decoding on the device where it lies.

This package shares its name with an unrelated package on PyPI that transformers probes for, so this file
imports neither torch nor triton and defines no version (docs/architecture.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from kernels.packing import PackedWeight


class Prepared(Protocol):
    """A packed weight, laid out for one backend. backend: its name, for people; size_bytes: as it lies in memory."""

    backend: str
    size_bytes: int

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs."""
        ...


def matmul(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """inputs (..., in) times the transposed packed weight (out, in): (..., out), in the dtype of inputs."""
    from kernels import reference  # noqa: PLC0415  keeps this package importable without torch

    return reference.matmul(inputs, packed)


def backend() -> str:
    """Name of the implementation that matmul uses, for people."""
    return "torch, packed weights"
