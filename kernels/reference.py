"""Plain torch over packed weights: the meaning of every other kernel.

Decoding goes through a table of 256 rows, one per byte value, so that a byte of two or four codes costs one
look-up; the decoded matrix lives only for the length of one multiplication, and never all of a large one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kernels.packing import PackedWeight, unpack
from kernels.transform import Transform

if TYPE_CHECKING:
    from kernels import Prepared

#: Weights that a CPU decodes at once: the head of a model is much larger than any other layer.
CHUNK_WEIGHTS = 4_194_304


@lru_cache(maxsize=32)
def _byte_table(bits: int, zero: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    every_byte = torch.arange(256, dtype=torch.uint8, device=device).unsqueeze(1)
    return (unpack(every_byte, bits).float() - zero).to(
        dtype
    )  # (256, 8 / bits), exact in every dtype


def weight_of(packed: PackedWeight) -> torch.Tensor:
    """The float32 weight (out, in) that a layer with this packed weight multiplies by, transform included."""
    matrix = dequantize(packed)
    return packed.transform.dense(matrix) if packed.transform else matrix


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The packed matrix (out, in): scale * (code - zero), or with two levels of scales the difference of two products
    that are exact in float32; rounded once to dtype; no transform.
    """
    if packed.steps is not None:
        return _two_levels(packed).to(dtype)
    out_features, in_features = packed.shape
    groups = packed.scale.shape[1]
    levels = _levels(packed, dtype).view(out_features, groups, in_features // groups)
    scale = packed.scale.to(dtype if dtype == torch.float32 else packed.scale.dtype)
    weight = levels * scale.unsqueeze(-1)
    return weight.to(dtype).view(out_features, in_features)


def _two_levels(packed: PackedWeight) -> torch.Tensor:
    """The matrix (out, in), float32, of a packed weight with steps."""
    scale, minimum = group_scales(packed)
    codes = unpack(packed.codes, packed.bits).view(*scale.shape, -1).float()
    return codes.mul_(scale.unsqueeze(-1)).sub_(minimum.unsqueeze(-1)).view(packed.shape)


def group_scales(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, minimums) of all groups, both (out, groups) float32: a weight is scale * code - minimum."""
    scale = packed.scale.float()
    if packed.steps is None:
        return scale, scale * (packed.zero if packed.zeros is None else packed.zeros)
    assert packed.minimum is not None
    steps = packed.steps.view(*scale.shape, -1)
    scale = scale.unsqueeze(-1) * (steps & 15)
    minimum = packed.minimum.float().unsqueeze(-1) * (steps >> 4)
    return scale.flatten(1), minimum.flatten(1)


def _levels(packed: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """code - zero, in the order of the weight, exact in every dtype."""
    if packed.zeros is not None:
        codes = unpack(packed.codes, packed.bits).view(*packed.zeros.shape, -1)
        return codes.to(dtype) - packed.zeros.unsqueeze(-1).to(dtype)
    if packed.bits == 8:  # a byte is one code, exact in every dtype: no table is needed
        return packed.codes.to(dtype) - packed.zero
    table = _byte_table(packed.bits, packed.zero, dtype, packed.codes.device)
    return table.index_select(0, packed.codes.flatten().to(torch.int32))


def matmul(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """inputs (..., in) @ weight.T, accumulated as torch does for the dtype of inputs."""
    if packed.transform is None:
        return _matrix_product(inputs, packed)
    values, added = packed.transform.inputs(inputs)
    return packed.transform.outputs(_matrix_product(values, packed), added)


def _matrix_product(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    rows, columns = packed.shape
    step = max(1, CHUNK_WEIGHTS // columns) if packed.codes.device.type == "cpu" else max(1, rows)
    parts = [
        F.linear(inputs, dequantize(packed.rows(slice(start, start + step)), inputs.dtype))
        for start in range(0, max(1, rows), step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class TorchWeight:
    """A packed weight as it is stored, for where no faster kernel takes it (`kernels.Prepared`)."""

    def __init__(self, packed: PackedWeight) -> None:
        self.packed, self.size_bytes = packed, packed.size_bytes
        self.backend = f"torch, packed INT{packed.bits}"

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs."""
        return matmul(inputs, self.packed)


class TransformedWeight:
    """A prepared matrix whose kernels know no transform, and torch's transform around it (`kernels.Prepared`)."""

    def __init__(self, matrix: Prepared, transform: Transform) -> None:
        self.matrix, self.transform = matrix, transform
        self.backend = matrix.backend
        self.size_bytes = matrix.size_bytes + transform.size_bytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs."""
        values, added = self.transform.inputs(inputs)
        return self.transform.outputs(self.matrix(values), added)
