"""Embedding and head in few bits: rounded once to the nearest level, never trained."""

from __future__ import annotations

from typing import Any

import torch

from kernels.packing import PackedWeight
from upq.layers import INT8, Grid, grid_of
from upq.models import LOOKED_UP_GROUP, looked_up, plan_embeddings

#: Of an embedding that is looked up and not multiplied: GGUF's Q4_0.
LOOKED_UP = grid_of("signed", 4)


def in_4_bits(weight: torch.Tensor) -> PackedWeight:
    """A float32 matrix (rows, width) with a scale for every 32 inputs, found by error search."""
    return LOOKED_UP.pack(weight, *LOOKED_UP.fit(weight, LOOKED_UP_GROUP))


def in_8_bits(weight: torch.Tensor, grid: Grid = INT8) -> PackedWeight:
    """A float32 matrix (rows, width) with one scale per row, so that a token's row is all that its look-up reads."""
    return grid.pack(weight, *grid.fit(weight, 0, "absmax"))


def packed_embeddings(model: Any, bits: int, grid: Grid = INT8) -> dict[str, PackedWeight]:
    """Embedding and head of a model by name, those that can be packed; none at 16 bits.

    bits: RunConfig.embedding_bits; at 4 the embedding has 4 and the head 8. grid: of what has 8 bits.
    """
    if bits == 16:
        return {}
    small = looked_up(model) if bits == LOOKED_UP.bits else None
    packed = {}
    for layer in plan_embeddings(model, INT8.bits):
        if layer.quantize:
            weight = model.get_parameter(f"{layer.name}.weight").detach().float()
            packed[layer.name] = (
                in_4_bits(weight) if layer.name == small else in_8_bits(weight, grid)
            )
    return packed


def kept_wider(model: Any, bits: int) -> list[str]:
    """What of embedding and head keeps more bits than were asked for, a line each with the reason."""
    plan = plan_embeddings(model, INT8.bits) if bits < 16 else []
    lines = [
        f"{layer.name} {layer.shape} stays in 16 bits: {layer.reason}"
        for layer in plan
        if not layer.quantize
    ]
    if plan and bits == LOOKED_UP.bits and plan[0].quantize and not looked_up(model):
        groups = f"its rows are no groups of {LOOKED_UP_GROUP}"
        reason = "it is the head too" if len(plan) == 1 else groups
        lines.append(f"{plan[0].name} {plan[0].shape} stays in 8 bits: {reason}")
    return lines
