"""Fake quantization on a GPU for training: one launch forward and one backward, where torch takes some twenty.

upq/layers/fake.py defines what is computed. The quantized weight and the weight's gradient are the same to the
last bit as torch's on the same GPU, because divisions and exponentials round as there and no product is fused with a
sum; the gradients of scales and zeros are the same up to the order of their sums. That order is fixed and nothing is
atomic, so training repeats to the last bit.

A program works on MANY whole groups, BLOCK columns at a time.

The scales and offsets of a grid of two levels, upq/layers/two_levels.py, are settled before, by one launch as well.
"""

# Triton compiles the kernels of this file; a launch takes plain values where they declare constants.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

from kernels.packing import NESTED_GROUP, nested_block

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Weights that a program works on at once: eight for each of its 128 threads.
TILE = 1024
#: Blocks of two-level scales that a program settles: few, so that those of a small layer fill a GPU.
SETTLED_BLOCKS = 16


@triton.jit
def exponential(values, PLAIN: tl.constexpr):
    """As torch computes it on a GPU; PLAIN: as Triton's interpreter can, which has no library of the device."""
    return tl.exp(values) if PLAIN else libdevice.exp(values)


@triton.jit
def _scales(log_scale, place, there, smallest, PLAIN: tl.constexpr):
    scale = exponential(tl.load(log_scale + place, mask=there, other=0.0), PLAIN)
    return tl.where(scale < smallest, smallest, scale)  # not a number stays so


@triton.jit
def _limited(values, low, high):
    """The values clamped; what is not a number stays so."""
    values = tl.where(values < low, low, values)
    return tl.where(values > high, high, values)


@triton.jit
def _whole(values):
    """The nearest whole numbers to finite values, ties to the even one; what is not a number stays so."""
    below = tl.floor(values)
    left = values - below
    is_odd = below != 2.0 * tl.floor(below * 0.5)
    rises = (left > 0.5) | ((left == 0.5) & is_odd)
    return tl.where(rises, below + 1.0, below)


@triton.jit
def _whole_zeros(zero, place, there, LEVELS: tl.constexpr):
    """Zeros rounded to the nearest code, ties to the even one."""
    value = _whole(tl.load(zero + place, mask=there, other=0.0))
    return _limited(value, 0.0, LEVELS - 1.0)


@triton.jit
def rounded(values, dtype: tl.constexpr, PLAIN: tl.constexpr):
    """float32 values in dtype, rounded to nearest, ties to even; Triton's interpreter only cuts bits off."""
    if PLAIN and dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        bits = tl.where(values == values, bits + 0x7FFF + ((bits >> 16) & 1), bits)
        return (bits >> 16).to(tl.uint16).to(dtype, bitcast=True)
    else:  # without this word the compiler goes on after the return
        return values.to(dtype)


@triton.jit
def forward_kernel(
    log_scale,  # (groups,) float32; where SETTLED the scales themselves
    zero,  # (groups,) float32, or None; where SETTLED the offsets
    groups,
    smallest,
    weight,  # (groups, GROUP) float32
    quantized,  # (groups, GROUP), the result
    LEVELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    MANY: tl.constexpr,
    SETTLED: tl.constexpr,
    PLAIN: tl.constexpr,  # for Triton's interpreter
):
    """quantized = the nearest level of every weight."""
    group = tl.program_id(0).to(tl.int64) * MANY + tl.arange(0, MANY)
    there = group < groups
    if SETTLED:
        scale = tl.load(log_scale + group, mask=there, other=1.0)[:, None]
        offset = tl.load(zero + group, mask=there, other=0.0)[:, None]
    else:
        scale = _scales(log_scale, group, there, smallest, PLAIN)[:, None]
        if zero is not None:
            offset = scale * _whole_zeros(zero, group, there, LEVELS)[:, None]
    for start in range(0, GROUP, BLOCK):
        column = start + tl.arange(0, BLOCK)
        place = group[:, None] * GROUP + column[None, :]
        inside = there[:, None] & (column < GROUP)[None, :]
        value = tl.load(weight + place, mask=inside, other=0.0)
        if zero is None:
            level = tl.floor(tl.div_rn(value, scale))
            value = (_limited(level, -(LEVELS // 2) * 1.0, LEVELS // 2 - 1.0) + 0.5) * scale
        else:
            code = tl.floor(tl.div_rn(value + offset, scale) + 0.5)
            value = _limited(code, 0.0, LEVELS - 1.0) * scale - offset
        value = rounded(value, quantized.dtype.element_ty, PLAIN)
        tl.store(quantized + place, value, mask=inside)


@triton.jit
def backward_kernel(
    log_scale,  # (groups,) float32; where SETTLED the scales themselves
    zero,  # (groups,) float32, or None; where SETTLED the offsets
    groups,
    smallest,
    weight,  # (groups, GROUP) float32
    quantized,  # (groups, GROUP), what forward_kernel gave
    gradient,  # (groups, GROUP), of the loss by quantized
    weight_gradient,  # (groups, GROUP) float32, a result
    scale_gradient,  # (groups,) float32, a result: by the logarithm of the scale
    zero_gradient,  # (groups,) float32, a result, or None
    reach,  # of the unclipped weights on both sides of the middle, in steps
    LEVELS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    MANY: tl.constexpr,
    SETTLED: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """The three gradients, as upq.layers.fake derives them."""
    group = tl.program_id(0).to(tl.int64) * MANY + tl.arange(0, MANY)
    there = group < groups
    if SETTLED:
        scale = tl.load(log_scale + group, mask=there, other=1.0)
    else:
        scale = _scales(log_scale, group, there, smallest, PLAIN)
    limit = (scale * reach)[:, None]
    if zero is not None:
        if SETTLED:
            offset = tl.load(zero + group, mask=there, other=0.0)
        else:
            offset = scale * _whole_zeros(zero, group, there, LEVELS)
        middle = ((LEVELS - 1) / 2 * scale - offset)[:, None]
    by_scale = tl.zeros((MANY, BLOCK), tl.float32)
    clipped = tl.zeros((MANY, BLOCK), tl.float32)
    for start in range(0, GROUP, BLOCK):
        column = start + tl.arange(0, BLOCK)
        place = group[:, None] * GROUP + column[None, :]
        inside = there[:, None] & (column < GROUP)[None, :]
        value = tl.load(weight + place, mask=inside, other=0.0)
        arriving = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        rounded = tl.load(quantized + place, mask=inside, other=0.0).to(tl.float32)
        centred = value if zero is None else value - middle
        flowing = arriving * tl.where(tl.abs(centred) <= limit, 1.0, 0.0)
        tl.store(weight_gradient + place, flowing, mask=inside)
        by_scale += arriving * rounded - flowing * value
        if zero is not None:
            clipped += flowing - arriving
    tl.store(scale_gradient + group, tl.sum(by_scale, axis=1), mask=there)
    if zero is not None:
        tl.store(zero_gradient + group, tl.sum(clipped, axis=1) * scale, mask=there)


@triton.jit
def _of_steps(values, least, smallest, largest, MOST: tl.constexpr, PLAIN: tl.constexpr):
    """The nearest steps to values (blocks, groups), times what a step of their block is worth."""
    top = tl.max(values, axis=1)
    # Torch divides by a number on a CPU, and on a GPU multiplies by its inverse.
    unit = top / MOST if PLAIN else top * (1.0 / MOST)
    unit = _limited(unit, smallest, largest).to(tl.float16).to(tl.float32)
    has_nan = tl.max((values != values).to(tl.int32), axis=1) > 0  # which a maximum passes over
    unit = tl.where(has_nan, float("nan"), unit)[:, None]
    # Infinite values are limited before they are rounded.
    return unit * _whole(_limited(tl.div_rn(values, unit), least, MOST * 1.0))


@triton.jit
def settle_kernel(
    log_scale,  # (blocks, GROUPS) float32
    zero,  # (blocks, GROUPS) float32
    blocks,
    smallest,  # and largest unit of a block
    largest,
    scale,  # (blocks, GROUPS) float32, a result
    offset,  # (blocks, GROUPS) float32, a result
    MOST: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,  # GROUPS, padded to a power of two
    MANY: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Scales and offsets as the whole steps of their block that are nearest to the latent ones."""
    block = tl.program_id(0).to(tl.int64) * MANY + tl.arange(0, MANY)
    group = tl.arange(0, WIDTH)
    place = block[:, None] * GROUPS + group[None, :]
    there = (block < blocks)[:, None] & (group < GROUPS)[None, :]
    latent = tl.load(log_scale + place, mask=there, other=float("-inf"))  # whose scale is 0
    scales = exponential(latent, PLAIN)
    offsets = scales * tl.load(zero + place, mask=there, other=0.0)
    offsets = tl.where(offsets < 0.0, 0.0, offsets)
    settled = _of_steps(scales, 1.0, smallest, largest, MOST, PLAIN)
    tl.store(scale + place, settled, mask=there)
    settled = _of_steps(offsets, 0.0, smallest, largest, MOST, PLAIN)
    tl.store(offset + place, settled, mask=there)


def are_plain(*tensors: torch.Tensor) -> bool:
    """Whether the kernels take these latents, wherever they lie: float32, one number after the other, not empty."""
    return all(
        tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.numel() > 0
        for tensor in tensors
    )


def settle(
    log_scale: torch.Tensor, zero: torch.Tensor, most: int, smallest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets (out, groups) float32 of two levels, of plain latents (out, groups) on one device.

    most: steps of the largest value of a block; smallest: what one of them is worth at least. The results are those of
    TwoLevelGrid.settled on the device to the last bit, but that scales too small for a normal float32 are 0 on a GPU.
    """
    scale, offset = torch.empty_like(log_scale), torch.empty_like(log_scale)
    groups = nested_block(log_scale.shape[1] * NESTED_GROUP) // NESTED_GROUP
    blocks = log_scale.numel() // groups
    with torch.cuda.device_of(log_scale):
        settle_kernel[(triton.cdiv(blocks, SETTLED_BLOCKS),)](
            *(log_scale, zero, blocks, smallest, torch.finfo(torch.float16).max, scale, offset),
            MOST=most,
            GROUPS=groups,
            WIDTH=triton.next_power_of_2(groups),
            MANY=SETTLED_BLOCKS,
            PLAIN=knobs.runtime.interpret,
            enable_fp_fusion=False,
        )
    return scale, offset


class Levels(NamedTuple):
    """What a weight (out, in) is rounded to, and the two passes over it.

    log_scale: (out, groups) float32; zero: (out, groups) float32, not yet rounded, or None for the middle of the codes;
    count: how many levels there are; smallest: scales below it are raised to it. is_settled: log_scale and zero hold
    scales and offsets as weights are rounded at them, such as `settle` gives.
    """

    log_scale: torch.Tensor
    zero: torch.Tensor | None
    count: int
    smallest: float
    is_settled: bool = False

    def fit(self, weight: torch.Tensor, dtype: torch.dtype) -> bool:
        """Whether the kernels take this weight with results in dtype, wherever it lies."""
        given = [weight, self.log_scale, *([] if self.zero is None else [self.zero])]
        return are_plain(*given) and dtype in DTYPES

    def nearest(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The nearest level of every weight, (out, in) in dtype."""
        quantized = torch.empty_like(weight, dtype=dtype)
        self._launch(forward_kernel, weight, quantized)
        return quantized

    def gradients(
        self,
        weight: torch.Tensor,
        quantized: torch.Tensor,
        gradient: torch.Tensor,
        share: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Gradients by weight (out, in), by log_scale and by zero (out, groups), all float32.

        quantized: what `nearest` gave; gradient: of the loss by it, (out, in); share: of the range beyond which a
        weight counts as clipped.
        """
        by_weight, by_scale = torch.empty_like(weight), torch.empty_like(self.log_scale)
        by_zero = None if self.zero is None else torch.empty_like(self.zero)
        self._launch(
            backward_kernel,
            weight,
            quantized,
            gradient.contiguous(),
            by_weight,
            by_scale,
            by_zero,
            self.count / 2 * share,
        )
        return by_weight, by_scale, by_zero

    def _launch(self, kernel: Any, weight: torch.Tensor, *others: Any) -> None:
        """Run one of the two kernels over all groups of a weight."""
        groups = self.log_scale.numel()
        group = weight.numel() // groups
        block = min(triton.next_power_of_2(group), TILE)
        many = TILE // block
        with torch.cuda.device_of(weight):
            kernel[(triton.cdiv(groups, many),)](
                *(self.log_scale, self.zero, groups, self.smallest, weight, *others),
                LEVELS=self.count,
                GROUP=group,
                BLOCK=block,
                MANY=many,
                SETTLED=self.is_settled,
                PLAIN=knobs.runtime.interpret,
                enable_fp_fusion=False,
            )
