"""Random packed weights in the forms that runs make, for benchmarks: speed does not depend on their values."""

from __future__ import annotations

import torch

from kernels.packing import NESTED_GROUP, PackedWeight, nested_block

#: Inputs of a group of the odd grid, and of the grids of GGUF's Q4_0 and Q8_0.
ODD_GROUP, SIGNED_GROUP = 64, 32
#: Of the weights' values, as those of a model.
DEVIATION = 0.02


def odd(
    rows: int, columns: int, bits: int, device: str = "cuda", group: int = ODD_GROUP
) -> PackedWeight:
    """A weight (rows, columns) on the grid whose zero is in the middle of the codes."""
    return _one_level(rows, columns, bits, device, group, (2**bits - 1) / 2)


def signed(rows: int, columns: int, bits: int, device: str = "cuda") -> PackedWeight:
    """One on the grid whose zero is a code, in groups of SIGNED_GROUP: a run's INT4 and its embedding in 8 bits."""
    return _one_level(rows, columns, bits, device, SIGNED_GROUP, 2.0 ** (bits - 1))


def two_levels(rows: int, columns: int, bits: int = 2, device: str = "cuda") -> PackedWeight:
    """One of 2 bits with scales of two levels, GGUF's Q2_K where 256 divides the columns: a run's INT2."""
    codes = _bytes(rows, columns // 4, device)
    steps = _bytes(rows, columns // NESTED_GROUP, device)
    shape = (rows, columns // nested_block(columns))
    scale = torch.full(shape, _step(2) / 8, dtype=torch.float16, device=device)
    return PackedWeight(codes, scale, bits, 0.0, minimum=scale * 1.5, steps=steps)


def _one_level(
    rows: int, columns: int, bits: int, device: str, group: int, zero: float
) -> PackedWeight:
    codes = _bytes(rows, columns * bits // 8, device)
    shape = (rows, columns // group)
    scale = torch.full(shape, _step(bits), dtype=torch.float16, device=device)
    return PackedWeight(codes, scale, bits, zero)


def _step(bits: int) -> float:
    """Between two levels, so that uniform codes have the standard deviation DEVIATION."""
    return DEVIATION * 12**0.5 / 2**bits


def _bytes(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device=device)
