"""Reading a GGUF back for the comparison, with gguf-py and apart from what wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy

from upq.export.gguf_kinds import KINDS, Q2_0, Kind


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file. data: (rows, bytes of a row) uint8, or (1, bytes) of a vector."""

    kind: Kind
    shape: tuple[int, ...]
    data: numpy.ndarray

    def decoded(self) -> numpy.ndarray:
        """Its values, float32 (float64 of Q2_0, by the definition of the type), in its shape."""
        if self.kind == Q2_0:
            values = _two_bits(self.data)
        else:
            values = gguf.quants.dequantize(self.data, gguf.GGMLQuantizationType(self.kind.number))
        return values.reshape(self.shape)


class Reader(gguf.GGUFReader):
    """gguf-py's reader of headers, for files with tensors of types that it does not know."""

    kinds = KINDS

    def __init__(self, path: Path) -> None:
        self.stored: dict[str, Stored] = {}
        super().__init__(path)

    def _get(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(self.data, numpy.memmap):  # slicing a memmap costs ten times as much
            self.data = numpy.asarray(self.data)
        return super()._get(*arguments, **options)

    def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
        for field in fields:
            _, name, _, dimensions, number, offset = field.parts
            shape = tuple(reversed(dimensions.tolist()))
            kind = self.kinds[int(number[0])]
            start = int(start_offs + offset[0])
            data = self.data[start : start + kind.size_bytes(shape)]
            rows = shape[0] if len(shape) > 1 else 1
            self.stored[bytes(name).decode()] = Stored(kind, shape, data.reshape(rows, -1))


def _two_bits(data: numpy.ndarray) -> numpy.ndarray:
    """Q2_0: blocks of a float16 d and 64 codes, four in a byte, the first in its lowest bits; d * (code - 1)."""
    blocks = data.reshape(-1, Q2_0.block_bytes)
    scale = numpy.ascontiguousarray(blocks[:, :2]).view("<f2").astype(numpy.float64)
    codes = numpy.stack([blocks[:, 2:] >> shift & 3 for shift in (0, 2, 4, 6)], -1)
    return scale * (codes.reshape(len(blocks), -1).astype(numpy.float64) - 1)
