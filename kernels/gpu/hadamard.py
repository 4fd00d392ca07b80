"""The block Hadamard of activations, in the kernels that stand before a product with weights quantized in a rotated
space.

A Hadamard matrix has only ones and minus ones, so the tensor core multiplies by it exactly and sums in float32; the
factor 1 / sqrt(block) follows. kernels.transform is the definition.
"""

# Triton compiles the kernels of this file; a launch takes plain values where they declare constants.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from kernels.transform import Transform, hadamard_matrix

#: Sizes of blocks that a kernel transforms: the tensor core wants 16 at least, and 256 by 64 ones fill its memory.
SMALLEST, LARGEST = 16, 256
#: Blocks that are multiplied at once, the rows of a tensor core's step.
BLOCKS = 16


@dataclass(frozen=True)
class InputTransform:
    """What a kernel does to the activations that it writes: H (factors * activations), H in blocks.

    factors: (width,) and signs: (block, block), the matrix without its factor, both in the dtype of the activations.
    """

    factors: torch.Tensor
    signs: torch.Tensor

    @property
    def block(self) -> int:
        """The size of a Hadamard block."""
        return len(self.signs)


def input_transform(
    transform: Transform, dtype: torch.dtype, device: torch.device
) -> InputTransform | None:
    """The inputs' half of a transform; None where the kernels cannot do all of it."""
    if transform.affine is not None or transform.shift is not None:
        return None
    if transform.scale_in is None or not SMALLEST <= transform.block_in <= LARGEST:
        return None
    factors = transform.scale_in.to(device, dtype)
    return InputTransform(factors, _signs(transform.block_in, dtype, device))


@lru_cache(maxsize=32)
def _signs(block: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The Hadamard matrix (block, block) without its factor."""
    return hadamard_matrix(block, torch.float32, device).sign().to(dtype)


@triton.jit
def store_transformed(
    target,  # where the first of the values belongs
    values,  # (WIDTH,) activations, in the type of the target; WIDTH is a multiple of BLOCK * 16
    factor,  # (WIDTH,), in the same type
    count,  # how many of the values exist, a multiple of BLOCK
    signs,  # (BLOCK, BLOCK)
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PLAIN: tl.constexpr,  # dots in float32, for Triton's interpreter
):
    """Store the block Hadamard of factor * values, which is rounded before and after the Hadamard as in torch."""
    DTYPE: tl.constexpr = target.dtype.element_ty
    BLOCKS: tl.constexpr = WIDTH // BLOCK
    PART: tl.constexpr = BLOCK if BLOCK < 64 else 64
    scaled = (values.to(tl.float32) * factor.to(tl.float32)).to(DTYPE)
    tile = tl.reshape(scaled, (BLOCKS, BLOCK))
    if PLAIN:
        tile = tile.to(tl.float32)
    row, inner = tl.arange(0, BLOCKS), tl.arange(0, BLOCK)
    for first in tl.static_range(0, BLOCK, PART):
        column = first + tl.arange(0, PART)
        part = tl.load(signs + inner[:, None] * BLOCK + column[None, :])
        if PLAIN:
            part = part.to(tl.float32)
        sums = tl.dot(tile, part, input_precision="ieee")
        place = row[:, None] * BLOCK + column[None, :]
        tl.store(target + place, (sums * (BLOCK**-0.5)).to(DTYPE), mask=place < count)
