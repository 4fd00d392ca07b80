"""Plain torch over packed weights: the meaning of every other kernel.

Decoding goes through a table of 256 rows, one per byte value, so that a byte of two or four codes costs one
look-up; the decoded matrix lives only for the length of one multiplication.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from kernels.packing import PackedWeight, unpack


@lru_cache(maxsize=32)
def _byte_table(bits: int, zero: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    every_byte = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1)
    return (unpack(every_byte, bits).float() - zero).to(
        dtype
    )  # (256, 8 / bits), exact in every dtype


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight (out, in): scale * (code - zero), the product rounded once to dtype."""
    out_features, in_features = packed.shape
    groups = packed.scale.shape[1]
    levels = _levels(packed, dtype)
    scale = packed.scale.to(dtype if dtype == torch.float32 else packed.scale.dtype)
    weight = levels.view(out_features, groups, in_features // groups) * scale.unsqueeze(-1)
    return weight.to(dtype).view(out_features, in_features)


def _levels(packed: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    if packed.bits == 8:  # a byte is one code, exact in every dtype: no table is needed
        return packed.codes.to(dtype) - packed.zero
    table = _byte_table(packed.bits, packed.zero, dtype, packed.codes.device)
    return table.index_select(0, packed.codes.flatten().to(torch.int32))


def matmul(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """inputs (..., in) @ weight.T, accumulated as torch does for the dtype of inputs."""
    return F.linear(inputs, dequantize(packed, inputs.dtype))
