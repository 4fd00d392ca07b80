"""What a grid's codes stand for, written down a second time for tests."""

from __future__ import annotations

import torch

from kernels.reference import dequantize
from upq.layers import INT2, INT4, Grid

#: Precision -> the grid without zeros of its own.
GRIDS = {"INT4": INT4, "INT2": INT2}


def decode(
    grid: Grid, codes: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """Weight (out, in) float32 of codes (out, in), scale and zeros (out, groups)."""
    rows, columns = codes.shape
    levels = codes.float().view(rows, scale.shape[1], -1)
    levels = levels - (grid.zero if zeros is None else zeros.unsqueeze(-1))
    return (levels * scale.float().unsqueeze(-1)).view(rows, columns)


def round_trip(
    grid: Grid, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """The float32 weight (out, in) that the packed form of `weight` stands for."""
    return dequantize(grid.pack(weight, scale, zeros))
