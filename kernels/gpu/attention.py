"""Attention of a decoding step on a GPU: one query a row over a long cache, split over many programs and joined.

The cache's positions are split among programs; each gives its weighted sum of values with its largest score, and a
second kernel joins them, and transforms them for the product that follows where its weights want that.
"""

# Triton compiles the kernels of this file; a launch takes plain values where they declare constants.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs

from kernels.gpu.hadamard import BLOCKS, InputTransform, store_transformed

#: Positions of the cache that one program of the attention reads, and at a time.
SPLIT, BLOCK = 256, 64
#: Numbers of the splits' sums that a program holds while it joins them.
JOINED = 8192


@triton.jit
def _attention_kernel(
    queries,  # (rows, kv_heads * SHARE, SIZE)
    key_cache,  # (rows, kv_heads, capacity, SIZE)
    value_cache,
    positions,  # (rows,): the last position that is seen
    sums,  # (rows, kv_heads * SHARE, splits, SIZE) float32: weighted values of a split
    heights,  # (rows, kv_heads * SHARE, splits, 2) float32: its largest score, and the sum of its weights
    kv_heads,
    capacity,
    scaling,
    SIZE: tl.constexpr,
    SHARE: tl.constexpr,  # query heads of one key head
    TILE: tl.constexpr,  # SHARE, padded to 16 for the tensor core
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    PLAIN: tl.constexpr,  # dots in float32, for Triton's interpreter
):
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    share, feature = tl.arange(0, TILE), tl.arange(0, SIZE)
    head = row * kv_heads * SHARE + kv_head * SHARE + share
    real = share < SHARE
    query = tl.load(queries + head[:, None] * SIZE + feature[None, :], real[:, None], other=0.0)
    last = tl.load(positions + row).to(tl.int32)
    start = (row * kv_heads + kv_head).to(tl.int64) * capacity * SIZE
    highest = tl.full((TILE,), -1e30, tl.float32)
    weights = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, SIZE), tl.float32)
    for first in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, last + 1), BLOCK):
        position = first + tl.arange(0, BLOCK)
        seen = position <= last
        place = start + position[:, None] * SIZE + feature[None, :]
        keys = tl.load(key_cache + place, seen[:, None], other=0.0)
        values = tl.load(value_cache + place, seen[:, None], other=0.0)
        if PLAIN:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
            scores = tl.dot(query.to(tl.float32), tl.trans(keys), input_precision="ieee")
        else:
            scores = tl.dot(query, tl.trans(keys))
        scores = tl.where(seen[None, :], scores * scaling, -1e30)
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        weight = tl.exp(scores - higher[:, None])
        weight = tl.where(seen[None, :], weight, 0.0)
        shrink = tl.exp(highest - higher)
        weights = weights * shrink + tl.sum(weight, axis=1)
        added = tl.dot(weight.to(values.dtype), values, input_precision="ieee")
        total = total * shrink[:, None] + added
        highest = higher
    part = head * splits + split
    tl.store(sums + part[:, None] * SIZE + feature[None, :], total, mask=real[:, None])
    tl.store(heights + part * 2, highest, mask=real)
    tl.store(heights + part * 2 + 1, weights, mask=real)


@triton.jit
def _heights(heights, start, real, first, splits, COUNT: tl.constexpr):
    """Of COUNT splits from `first` on, for each head: their places, which exist, their largest scores."""
    split = first + tl.arange(0, COUNT)
    place = start[:, None] + split[None, :]
    there = real[:, None] & (split < splits)[None, :]
    return place, there, tl.load(heights + place * 2, mask=there, other=-1e30)


@triton.jit
def _join_kernel(
    sums,  # (rows, heads, splits, SIZE) float32
    heights,  # (rows, heads, splits, 2) float32
    outputs,  # (rows, heads, SIZE)
    factors,  # (heads * SIZE,), or None where TRANSFORM is 1
    signs,  # (TRANSFORM, TRANSFORM), or None
    heads,
    splits,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,  # splits, padded to a power of two
    HEADS: tl.constexpr,  # heads of one program
    CHUNK: tl.constexpr,  # splits that are added up at a time
    TRANSFORM: tl.constexpr,  # the size of a Hadamard block; 1: nothing is transformed
    PLAIN: tl.constexpr,
):
    first = tl.program_id(1) * HEADS
    feature = tl.arange(0, SIZE)
    head = first + tl.arange(0, HEADS)
    real = head < heads
    start = (tl.program_id(0) * heads + head) * splits
    every, exist, all_heights = _heights(heights, start, real, 0, splits, WIDTH)
    weight = tl.load(heights + every * 2 + 1, mask=exist, other=0.0)
    highest = tl.max(all_heights, axis=1)
    whole = tl.sum(weight * tl.exp(all_heights - highest[:, None]), axis=1)
    total = tl.zeros((HEADS, SIZE), tl.float32)
    for begin in range(0, splits, CHUNK):
        part, there, height = _heights(heights, start, real, begin, splits, CHUNK)
        source = part[:, :, None] * SIZE + feature[None, None, :]
        value = tl.load(sums + source, mask=there[:, :, None], other=0.0)
        total += tl.sum(value * tl.exp(height - highest[:, None])[:, :, None], axis=1)
    result = (total / tl.where(real, whole, 1.0)[:, None]).to(outputs.dtype.element_ty)
    target = outputs + (tl.program_id(0) * heads + first) * SIZE
    count = (heads - first) * SIZE
    place = tl.arange(0, HEADS * SIZE)
    values = tl.reshape(result, (HEADS * SIZE,))
    if TRANSFORM == 1:
        tl.store(target + place, values, mask=place < count)
    else:
        factor = tl.load(factors + first * SIZE + place, mask=place < count, other=0.0)
        store_transformed(target, values, factor, count, signs, HEADS * SIZE, TRANSFORM, PLAIN)


def attention(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    positions: torch.Tensor,
    span: int,
    scaling: float,
    transform: InputTransform | None = None,
) -> torch.Tensor:
    """Attention of one query a row, (rows, heads * size), over the first `span` places of its cache: as queries.

    caches: (rows, kv heads, capacity, size), contiguous; a row sees its positions up to and with positions[row].
    transform: of the outputs, for the product that reads them.
    """
    rows, kv_heads, capacity, size = key_cache.shape
    heads = queries.shape[1] // size
    splits = triton.cdiv(span, SPLIT)
    sums = torch.empty(rows, heads, splits, size, dtype=torch.float32, device=queries.device)
    heights = torch.empty(rows, heads, splits, 2, dtype=torch.float32, device=queries.device)
    outputs = torch.empty_like(queries)
    share = heads // kv_heads
    plain = knobs.runtime.interpret or queries.dtype == torch.float32
    _attention_kernel[(rows, kv_heads, splits)](
        queries,
        key_cache,
        value_cache,
        positions,
        sums,
        heights,
        kv_heads,
        capacity,
        scaling,
        SIZE=size,
        SHARE=share,
        TILE=max(16, triton.next_power_of_2(share)),
        SPLIT=SPLIT,
        BLOCK=BLOCK,
        PLAIN=plain,
    )
    together = BLOCKS * transform.block // size if transform else 1
    width = triton.next_power_of_2(splits)
    _join_kernel[(rows, triton.cdiv(heads, together))](
        sums,
        heights,
        outputs,
        transform.factors if transform else None,
        transform.signs if transform else None,
        heads,
        splits,
        SIZE=size,
        WIDTH=width,
        HEADS=together,
        CHUNK=max(1, min(width, JOINED // (together * size))),
        TRANSFORM=transform.block if transform else 1,
        PLAIN=plain,
        num_warps=8 if transform else 4,
    )
    return outputs
