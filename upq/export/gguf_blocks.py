"""Weights as the bytes of GGUF's blocks. Codes and scales are moved, never computed anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy
import torch

from kernels.packing import LARGEST_BLOCK, NESTED_GROUP, PackedWeight, pack, unpack
from kernels.reference import dequantize
from upq.export.formats import cannot_export
from upq.export.gguf_kinds import F16, Q2_0, Q2_K, Q4_0, Q5_0, Q8_0, Kind, divisor, whole_scale

#: Weights that are encoded at once.
CHUNK_WEIGHTS = 4_194_304


def encoded(weight: PackedWeight | torch.Tensor, kind: Kind) -> numpy.ndarray:
    """The bytes of a weight (out, in), or of a plain tensor of any shape, in this type: uint8 (..., bytes of a row).

    Raises UserError("cannot_export") where F16 is asked for and a value lies beyond it.
    """
    if isinstance(weight, torch.Tensor):
        return _bytes_of(weight.to(weight.dtype if weight.dim() > 1 else torch.float32)).numpy()
    return torch.cat([_rows(part, kind) for part in chunks(weight)]).numpy()


def chunks(packed: PackedWeight) -> Iterator[PackedWeight]:
    """A packed weight a few rows at a time, without its transform."""
    rows, columns = packed.shape
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield packed.rows(slice(start, start + step))


def reordered(
    weight: PackedWeight | torch.Tensor, order: torch.Tensor
) -> PackedWeight | torch.Tensor:
    """The rows of a weight in another order; order: (out,) which row comes where."""
    if isinstance(weight, torch.Tensor):
        return weight[order]
    return replace(weight, **{name: tensor[order] for name, tensor in weight.tensors.items()})


def _rows(packed: PackedWeight, kind: Kind) -> torch.Tensor:
    """(rows, bytes of a row) uint8."""
    if kind is F16:
        return _bytes_of(rounded(dequantize(packed)))
    if kind is Q2_K:
        return _q2_k(packed)
    numbers = _whole_numbers(packed).unflatten(1, (-1, kind.block))
    scale = whole_scale(packed)
    scale = scale.repeat_interleave(numbers.shape[1] // scale.shape[1], 1).unsqueeze(-1)
    return torch.cat(LAYOUTS[kind](scale, numbers), -1).flatten(1)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """A float32 weight in float16. Raises UserError("cannot_export") where a value lies beyond it."""
    half = weight.half()
    if not bool(half.isfinite().all()):
        largest = float(weight.abs().max())
        raise cannot_export(
            f"A weight is {largest:g}, which lies beyond float16, and no exact type holds it."
        )
    return half


def _whole_numbers(packed: PackedWeight) -> torch.Tensor:
    """The number (out, in) int16 that every weight is of its scale, see gguf_kinds.divisor."""
    codes = unpack(packed.codes, packed.bits).to(torch.int16)
    if packed.zeros is None:
        times = divisor(packed)
        return codes * times - int(packed.zero * times)
    zeros = packed.zeros.to(torch.int16).unsqueeze(-1)
    return (codes.view(*packed.zeros.shape, -1) - zeros).flatten(1)


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8)


def _q2_0(scale: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
    """d, then four codes a byte; a weight is d * (code - 1), so that -2 to 1 are codes 3 to 0 at d = -scale."""
    codes = pack((1 - numbers).flatten(0, 1), 2)
    return [_bytes_of(-scale), codes.unflatten(0, numbers.shape[:2])]


def _q4_0(scale: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
    """d, then the codes of the first half of the block in low and those of the second in high halves of bytes."""
    return [_bytes_of(scale), _nibbles((numbers + 8).to(torch.uint8))]


def _q5_0(scale: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
    """d, then the fifth bits of all codes, then the other four as in Q4_0."""
    codes = (numbers + 16).to(torch.uint8)
    places = torch.arange(8, dtype=torch.uint8)
    fifth = ((codes >> 4).unflatten(-1, (-1, 8)) << places).sum(-1).to(torch.uint8)
    return [_bytes_of(scale), fifth, _nibbles(codes & 15)]


def _q8_0(scale: torch.Tensor, numbers: torch.Tensor) -> list[torch.Tensor]:
    """d, then a byte for every number."""
    return [_bytes_of(scale), _bytes_of(numbers.to(torch.int8))]


#: Type -> (scale (rows, blocks, 1) float16, numbers (rows, blocks, block) int16) -> the fields of its blocks.
LAYOUTS = {Q2_0: _q2_0, Q4_0: _q4_0, Q5_0: _q5_0, Q8_0: _q8_0}


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    low, high = codes.chunk(2, -1)
    return low | high << 4


def _q2_k(packed: PackedWeight) -> torch.Tensor:
    """Steps of the groups, codes, then scale and minimum of the block. A byte holds codes that lie 32 weights apart."""
    assert packed.steps is not None
    assert packed.minimum is not None
    steps = packed.steps.unflatten(1, (-1, LARGEST_BLOCK // NESTED_GROUP))
    codes = unpack(packed.codes, packed.bits).unflatten(1, (-1, 2, 4, 32))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    codes = (codes << shifts).sum(-2).to(torch.uint8).flatten(-2)
    scales = (_bytes_of(part.unsqueeze(-1)) for part in (packed.scale, packed.minimum))
    return torch.cat([steps, codes, *scales], -1).flatten(1)
