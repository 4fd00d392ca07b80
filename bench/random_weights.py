"""Random packed weights in the forms that runs make, for benchmarks: speed does not depend on their values."""

from __future__ import annotations

import torch

from kernels.packing import NESTED_GROUP, PackedWeight, nested_block

#: Inputs of a group of the odd grid, and of the grids of GGUF's Q4_0 and Q8_0.
ODD_GROUP, SIGNED_GROUP = 64, 32
#: Of the weights' values, as those of a model.
DEVIATION = 0.02


def odd(rows: int, columns: int, bits: int, device: str = "cuda") -> PackedWeight:
    """A weight (rows, columns) on the grid whose zero is in the middle of the codes, in groups of ODD_GROUP."""
    scale = _scales(rows, columns // ODD_GROUP, _step(bits), device)
    return PackedWeight(_codes(rows, columns, bits, device), scale, bits, (2**bits - 1) / 2)


def signed(rows: int, columns: int, bits: int, device: str = "cuda") -> PackedWeight:
    """One on the grid whose zero is a code, in groups of SIGNED_GROUP: a run's INT4 and its embedding in 8 bits."""
    scale = _scales(rows, columns // SIGNED_GROUP, _step(bits), device)
    return PackedWeight(_codes(rows, columns, bits, device), scale, bits, 2.0 ** (bits - 1))


def two_levels(rows: int, columns: int, bits: int = 2, device: str = "cuda") -> PackedWeight:
    """One of 2 bits with scales of two levels, GGUF's Q2_K where 256 divides the columns: a run's INT2."""
    scale = _scales(rows, columns // nested_block(columns), _step(bits) / 8, device)
    steps = _bytes(rows, columns // NESTED_GROUP, device)
    codes = _codes(rows, columns, bits, device)
    return PackedWeight(codes, scale, bits, 0.0, minimum=scale * 1.5, steps=steps)


def _step(bits: int) -> float:
    """Between two levels, so that uniform codes have the standard deviation DEVIATION."""
    return DEVIATION * 12**0.5 / 2**bits


def _scales(rows: int, groups: int, step: float, device: str) -> torch.Tensor:
    return torch.full((rows, groups), step, dtype=torch.float16, device=device)


def _codes(rows: int, columns: int, bits: int, device: str) -> torch.Tensor:
    return _bytes(rows, columns * bits // 8, device)


def _bytes(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randint(0, 256, (rows, columns), dtype=torch.uint8, device=device)
