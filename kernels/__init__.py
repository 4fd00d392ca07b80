"""Multiplying by packed low-bit weights.

`matmul(inputs, packed)` is the definition, in plain torch; `prepare(packed)` gives the fastest form of one weight
for decoding on the device where it lies.

This package shares its name with an unrelated package on PyPI that transformers probes for, so this file
imports neither torch nor triton and defines no version (docs/architecture.md).
"""

from __future__ import annotations

from dataclasses import replace
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


def prepare(packed: PackedWeight) -> Prepared:
    """The weight laid out for the fastest kernels that its device has and that take it, else as `matmul` reads it.

    `packed` need not be kept. `backend` of the result says which it is.
    """
    from kernels import reference  # noqa: PLC0415  as above
    from kernels.cpu import build, panels  # noqa: PLC0415  as above

    if packed.codes.is_cuda:
        try:
            from kernels.gpu import operators  # noqa: PLC0415  only where there is a GPU

            matrix = operators.TritonWeight(replace(packed, transform=None))
            transform = packed.transform
            return reference.TransformedWeight(matrix, transform) if transform else matrix
        except (ImportError, ValueError):  # no Triton here, or a weight that it does not compute
            return reference.TorchWeight(packed)
    library = panels.library()
    if library is None or panels.unsupported(packed):
        return reference.TorchWeight(packed)
    return panels.CpuWeight(packed, library, build.instruction_set())
