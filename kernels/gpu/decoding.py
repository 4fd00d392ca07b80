"""What a decoding step of the Llama family does between its matrix products, as few launches on a GPU.

A small model is bound by the number of kernels that it launches, not by its weights: transformers' forward takes about
fifty a layer, these are six. Each rounds where transformers' own modules round, and sums in a fixed order.
"""

# Triton compiles the kernels of this file; a launch takes plain values where they declare constants.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs

#: Positions of the cache that one program of the attention reads, and at a time.
SPLIT, BLOCK = 256, 64


@triton.jit
def _normalized(values, weight, count: tl.constexpr, epsilon, DTYPE: tl.constexpr):
    """RMS norm of float32 values, rounded to DTYPE before and after the weight, as transformers does."""
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / count + epsilon)
    return ((values * inverse).to(DTYPE).to(tl.float32) * weight.to(tl.float32)).to(DTYPE)


@triton.jit
def _add_norm_kernel(
    hidden, delta, weight, total, normal, size: tl.constexpr, epsilon, WIDTH: tl.constexpr
):
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < size
    place = row * size + column
    DTYPE: tl.constexpr = hidden.dtype.element_ty
    first = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(delta + place, mask=inside, other=0.0).to(tl.float32)
    summed = (first + second).to(DTYPE)
    tl.store(total + place, summed, mask=inside)
    scale = tl.load(weight + column, mask=inside, other=0.0)
    result = _normalized(summed.to(tl.float32), scale, size, epsilon, DTYPE)
    tl.store(normal + place, result, mask=inside)


def add_norm(
    hidden: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden, delta: (rows, size) -> their sum, and its RMS norm times weight (size,)."""
    rows, size = hidden.shape
    total, normal = torch.empty_like(hidden), torch.empty_like(hidden)
    width = triton.next_power_of_2(size)
    _add_norm_kernel[(rows,)](hidden, delta, weight, total, normal, size, epsilon, width)
    return total, normal


@triton.jit
def _gate_kernel(gate, up, outputs, count, WIDTH: tl.constexpr):
    place = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = place < count
    opened = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    DTYPE: tl.constexpr = gate.dtype.element_ty
    opened = (opened / (1 + tl.exp(-opened))).to(DTYPE).to(tl.float32)
    passed = opened * tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(outputs + place, passed.to(DTYPE), mask=inside)


def gate(gates: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gates) * up, for contiguous tensors of one shape."""
    outputs = torch.empty_like(gates)
    count = gates.numel()
    _gate_kernel[(triton.cdiv(count, 1024),)](gates, up, outputs, count, 1024)
    return outputs


@triton.jit
def _rotated(source, weight, cosine, sine, epsilon, SIZE: tl.constexpr, NORM: tl.constexpr):
    """One head with its positions rotated in, after its norm where the model has one."""
    feature = tl.arange(0, SIZE)
    other = (feature + SIZE // 2) % SIZE
    DTYPE: tl.constexpr = source.dtype.element_ty
    value = tl.load(source + feature)
    partner = tl.load(source + other)
    if NORM:
        loaded = value.to(tl.float32)
        value = _normalized(loaded, tl.load(weight + feature), SIZE, epsilon, DTYPE)
        # A sum over the same numbers in another order might differ, so the partner takes over the root.
        inverse = tl.rsqrt(tl.sum(loaded * loaded, axis=0) / SIZE + epsilon)
        normal = (partner.to(tl.float32) * inverse).to(DTYPE).to(tl.float32)
        partner = (normal * tl.load(weight + other).to(tl.float32)).to(DTYPE)
    sign = tl.where(feature < SIZE // 2, -1.0, 1.0)
    first = (value.to(tl.float32) * tl.load(cosine + feature).to(tl.float32)).to(DTYPE)
    second = (sign * partner.to(tl.float32) * tl.load(sine + feature).to(tl.float32)).to(DTYPE)
    return (first.to(tl.float32) + second.to(tl.float32)).to(DTYPE)


@triton.jit
def _rotate_kernel(
    queries,  # (rows, heads, SIZE)
    keys,  # (rows, kv_heads, SIZE)
    values,  # as keys
    cosine,  # (rows, SIZE)
    sine,
    positions,  # (rows,)
    query_norm,  # (SIZE,)
    key_norm,
    rotated,  # as queries
    key_cache,  # (rows, kv_heads, capacity, SIZE)
    value_cache,
    heads,
    kv_heads,
    capacity,
    epsilon,
    SIZE: tl.constexpr,
    NORM: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    feature = tl.arange(0, SIZE)
    cosine += row * SIZE
    sine += row * SIZE
    if head < heads:
        place = (row * heads + head) * SIZE
        turned = _rotated(queries + place, query_norm, cosine, sine, epsilon, SIZE, NORM)
        tl.store(rotated + place + feature, turned)
    else:
        index = row * kv_heads + head - heads
        position = tl.load(positions + row)
        target = (index.to(tl.int64) * capacity + position) * SIZE + feature
        turned = _rotated(keys + index * SIZE, key_norm, cosine, sine, epsilon, SIZE, NORM)
        tl.store(key_cache + target, turned)
        tl.store(value_cache + target, tl.load(values + index * SIZE + feature))


def rotate_and_store(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    positions: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> torch.Tensor:
    """Rotate queries (rows, heads * size) and keys (rows, kv heads * size); store keys and values at their positions.

    cosine, sine: (rows, size); positions: (rows,) int64; caches: (rows, kv heads, capacity, size), contiguous; norms:
    weights (size,) of the norms of queries and keys, and their epsilon. Returns the rotated queries.
    """
    rows, kv_heads, capacity, size = key_cache.shape
    heads = queries.shape[1] // size
    rotated = torch.empty_like(queries)
    query_norm, key_norm, epsilon = norms or (queries, keys, 0.0)
    _rotate_kernel[(rows, heads + kv_heads)](
        queries,
        keys,
        values,
        cosine,
        sine,
        positions,
        query_norm,
        key_norm,
        rotated,
        key_cache,
        value_cache,
        heads,
        kv_heads,
        capacity,
        epsilon,
        SIZE=size,
        NORM=norms is not None,
    )
    return rotated


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
def _join_kernel(sums, heights, outputs, splits, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    head = tl.program_id(0)
    split, feature = tl.arange(0, WIDTH), tl.arange(0, SIZE)
    there = split < splits
    part = head * splits + split
    height = tl.load(heights + part * 2, mask=there, other=-1e30)
    share = tl.exp(height - tl.max(height, axis=0))
    weight = tl.load(heights + part * 2 + 1, mask=there, other=0.0)
    place = part[:, None] * SIZE + feature[None, :]
    value = tl.load(sums + place, mask=there[:, None], other=0.0) * share[:, None]
    result = tl.sum(value, axis=0) / tl.sum(weight * share, axis=0)
    tl.store(outputs + head * SIZE + feature, result.to(outputs.dtype.element_ty))


def attention(
    queries: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    positions: torch.Tensor,
    span: int,
    scaling: float,
) -> torch.Tensor:
    """Attention of one query a row, (rows, heads * size), over the first `span` places of its cache: as queries.

    caches: (rows, kv heads, capacity, size), contiguous; a row sees its positions up to and with positions[row].
    """
    rows, kv_heads, capacity, size = key_cache.shape
    heads = queries.shape[1] // size
    splits = triton.cdiv(span, SPLIT)
    sums = torch.empty(rows, heads, splits, size, dtype=torch.float32, device=queries.device)
    heights = torch.empty(rows, heads, splits, 2, dtype=torch.float32, device=queries.device)
    outputs = torch.empty_like(queries)
    share = heads // kv_heads
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
        PLAIN=knobs.runtime.interpret or queries.dtype == torch.float32,
    )
    width = triton.next_power_of_2(splits)
    _join_kernel[(rows * heads,)](sums, heights, outputs, splits, SIZE=size, WIDTH=width)
    return outputs
