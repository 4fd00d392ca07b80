"""What a decoding step of the Llama family does between its matrix products, as few launches on a GPU.

A small model is bound by the number of kernels that it launches, not by its weights: transformers' forward takes about
fifty a layer; these, the attention (kernels.gpu.attention) and the products are ten. Each rounds where transformers'
own modules round, and sums in a fixed order. What stands before a product transforms its activations where the weights
were quantized in a rotated space, so that a rotation takes no launch of its own.
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

#: Columns of a row for each of a program's warps.
WARP_WIDTH = 512


@triton.jit
def _normalized(values, weight, count: tl.constexpr, epsilon, DTYPE: tl.constexpr):
    """RMS norm of float32 values, rounded to DTYPE before and after the weight, as transformers does."""
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / count + epsilon)
    return ((values * inverse).to(DTYPE).to(tl.float32) * weight.to(tl.float32)).to(DTYPE)


@triton.jit
def _add_norm_kernel(
    hidden,  # (rows, size)
    delta,  # as hidden
    weight,  # (size,)
    factors,  # (size,), or None where TRANSFORM is 1
    signs,  # (TRANSFORM, TRANSFORM), or None
    total,  # as hidden, a result
    normal,  # as hidden, a result
    size: tl.constexpr,
    epsilon,
    WIDTH: tl.constexpr,  # size, padded to a power of two
    TRANSFORM: tl.constexpr,  # the size of a Hadamard block; 1: nothing is transformed
    PLAIN: tl.constexpr,
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
    if TRANSFORM == 1:
        tl.store(normal + place, result, mask=inside)
    else:
        factor = tl.load(factors + column, mask=inside, other=0.0)
        target = normal + row * size
        store_transformed(target, result, factor, size, signs, WIDTH, TRANSFORM, PLAIN)


def add_norm(
    hidden: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    transform: InputTransform | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden, delta: (rows, size) -> their sum, and its RMS norm times weight (size,), transformed where asked for."""
    rows, size = hidden.shape
    total, normal = torch.empty_like(hidden), torch.empty_like(hidden)
    width = max(triton.next_power_of_2(size), BLOCKS * transform.block if transform else 1)
    _add_norm_kernel[(rows,)](
        hidden,
        delta,
        weight,
        *_parts(transform),
        total,
        normal,
        size,
        epsilon,
        WIDTH=width,
        TRANSFORM=transform.block if transform else 1,
        PLAIN=_plain(hidden),
        num_warps=_warps(width),
    )
    return total, normal


@triton.jit
def _gate_kernel(
    gates,  # (rows, size), gate_stride from row to row
    up,  # (rows, size), up_stride from row to row
    factors,  # (size,), or None where TRANSFORM is 1
    signs,  # (TRANSFORM, TRANSFORM), or None
    outputs,  # (rows, size)
    size,
    gate_stride,
    up_stride,
    WIDTH: tl.constexpr,  # columns of a program
    TRANSFORM: tl.constexpr,  # the size of a Hadamard block; 1: nothing is transformed
    PLAIN: tl.constexpr,
):
    row, start = tl.program_id(0), tl.program_id(1) * WIDTH
    column = start + tl.arange(0, WIDTH)
    inside = column < size
    DTYPE: tl.constexpr = outputs.dtype.element_ty
    opened = tl.load(gates + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    opened = (opened / (1 + tl.exp(-opened))).to(DTYPE).to(tl.float32)
    passed = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    passed = (opened * passed).to(DTYPE)
    target = outputs + row * size
    if TRANSFORM == 1:
        tl.store(target + column, passed, mask=inside)
    else:
        factor = tl.load(factors + column, mask=inside, other=0.0)
        left = size - start
        store_transformed(target + start, passed, factor, left, signs, WIDTH, TRANSFORM, PLAIN)


def gate(
    gates: torch.Tensor, up: torch.Tensor, transform: InputTransform | None = None
) -> torch.Tensor:
    """silu(gates) * up, transformed where asked for; both (rows, size), their rows contiguous."""
    rows, size = gates.shape
    outputs = torch.empty(rows, size, dtype=gates.dtype, device=gates.device)
    width = BLOCKS * transform.block if transform else 1024
    _gate_kernel[(rows, triton.cdiv(size, width))](
        gates,
        up,
        *_parts(transform),
        outputs,
        size,
        gates.stride(0),
        up.stride(0),
        WIDTH=width,
        TRANSFORM=transform.block if transform else 1,
        PLAIN=_plain(gates),
        num_warps=_warps(width),
    )
    return outputs


def _parts(transform: InputTransform | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (transform.factors, transform.signs) if transform else (None, None)


def _warps(width: int) -> int:
    return min(16, max(4, width // WARP_WIDTH))


def _plain(values: torch.Tensor) -> bool:
    """Whether dots are to be in float32: Triton's interpreter has no bfloat16."""
    return knobs.runtime.interpret or values.dtype == torch.float32


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
    queries,  # (rows, heads, SIZE), query_stride from row to row
    keys,  # (rows, kv_heads, SIZE), key_stride from row to row
    values,  # as keys, with value_stride
    cosine,  # (rows, SIZE)
    sine,
    positions,  # (rows,)
    query_norm,  # (SIZE,)
    key_norm,
    rotated,  # (rows, heads, SIZE), contiguous
    key_cache,  # (rows, kv_heads, capacity, SIZE)
    value_cache,
    heads,
    kv_heads,
    capacity,
    query_stride,
    key_stride,
    value_stride,
    epsilon,
    SIZE: tl.constexpr,
    NORM: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    feature = tl.arange(0, SIZE)
    cosine += row * SIZE
    sine += row * SIZE
    if head < heads:
        query = queries + row * query_stride + head * SIZE
        turned = _rotated(query, query_norm, cosine, sine, epsilon, SIZE, NORM)
        tl.store(rotated + (row * heads + head) * SIZE + feature, turned)
    else:
        kv_head = head - heads
        position = tl.load(positions + row)
        index = (row * kv_heads + kv_head).to(tl.int64)
        target = (index * capacity + position) * SIZE + feature
        key = keys + row * key_stride + kv_head * SIZE
        turned = _rotated(key, key_norm, cosine, sine, epsilon, SIZE, NORM)
        tl.store(key_cache + target, turned)
        value = tl.load(values + row * value_stride + kv_head * SIZE + feature)
        tl.store(value_cache + target, value)


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

    The rows of queries, keys and values are contiguous. cosine, sine: (rows, size); positions: (rows,) int64; caches:
    (rows, kv heads, capacity, size), contiguous; norms: weights (size,) of the norms of queries and keys, and their
    epsilon. Returns the rotated queries, contiguous.
    """
    rows, kv_heads, capacity, size = key_cache.shape
    heads = queries.shape[1] // size
    rotated = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
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
        queries.stride(0),
        keys.stride(0),
        values.stride(0),
        epsilon,
        SIZE=size,
        NORM=norms is not None,
    )
    return rotated
