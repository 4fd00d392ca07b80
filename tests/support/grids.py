"""What a grid's codes stand for, written down a second time for tests."""

from __future__ import annotations

import copy
from typing import Any

import torch

from kernels.reference import dequantize
from upq.layers import INT2, INT4, Grid
from upq.models import plan_layers

#: Precision -> the grid without zeros of its own.
GRIDS = {"INT4": INT4, "INT2": INT2}


def decode(
    grid: Grid, codes: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """Weight (out, in) float32 of codes (out, in), scale and zeros (out, groups)."""
    scale = scale.float().unsqueeze(-1)
    codes = codes.float().view(*scale.shape[:2], -1)
    if zeros is None:
        return ((codes - grid.zero) * scale).flatten(1)
    return (codes * scale - zeros.unsqueeze(-1) * scale).flatten(1)


def round_trip(
    grid: Grid, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """The float32 weight (out, in) that the packed form of `weight` stands for."""
    return dequantize(grid.pack(weight, scale, zeros))


def damaged(model: Any) -> Any:
    """The model at INT4."""
    twin = copy.deepcopy(model)
    for one in plan_layers(model, 16):
        weight = twin.get_parameter(f"{one.name}.weight")
        weight.data = round_trip(INT4, weight.data, *INT4.fit(weight.data, 16))
    return twin
