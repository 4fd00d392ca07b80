"""The header of a GGUF file, read with bounds before any library sees it.

gguf-py believes what a header announces: an array of 2**62 elements is a loop without end, a count that is too large
reads behind the file. Here every length is compared with the bytes that are there, and every size with the tensors.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from upq.errors import UserError
from upq.files import file_problem

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: Largest file, 2 TiB.
MOST_BYTES = 1 << 41
#: Elements of all arrays together. The largest vocabularies, with their merges, have 1.5 million; gguf-py needs some
#: hundred bytes for each.
MOST_ELEMENTS = 1 << 22
#: Bytes of a text in an array, such as a token; longer ones take time that grows with the square.
LONGEST_ELEMENT = 4096
#: Bytes of a key or of a tensor's name.
LONGEST_NAME = 512
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 20
TEXT, ARRAY = 8, 9
#: Type of a value -> how struct names it.
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
#: Fewest bytes of a key with its value, and of a tensor's entry.
LEAST_KEY, LEAST_TENSOR = 13, 24
#: What transformers would take from a model of its own where it is missing.
REQUIRED = ("block_count", "embedding_length")
HEADS = "attention.head_count"
KINDS_OF_TENSORS = frozenset(map(int, GGMLQuantizationType))
#: Numbers of an architecture with these endings are sizes of tensors; those with the names below are not.
SIZES = ("_length", "_count", "_size", "_dim")
NO_SIZES = ("context_length", "sliding_window_size")


@dataclass(frozen=True)
class Header:
    """values: the metadata, an array only as its length. tensors: name -> shape, the fastest dimension first."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Sequence[int]]


def read_header(path: Path) -> Header:
    """The header of a file whose tensors all lie within it. Raises UserError: corrupt_file, unsupported_arch."""
    try:
        if problem := file_problem(path, MOST_BYTES):
            raise ValueError(f"it {problem}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Reader(data).header()
        _vet_sizes(header)
    except (OSError, ValueError) as error:
        raise UserError(
            "corrupt_file",
            f"{path.name} is not a complete GGUF file: {error}.",
            "Download it again.",
        ) from error
    heads = header.values.get(f"{header.values['general.architecture']}.{HEADS}")
    if not isinstance(heads, range) and (type(heads) is not int or heads < 1):
        raise UserError(
            "unsupported_arch",
            f"{path.name} has {heads!r:.50} attention heads; expected a transformer with attention.",
            "Choose Llama, Qwen, Mistral, Gemma, Phi, SmolLM or the like.",
        )
    return header


class _Reader:
    """Walks through the bytes of a header. Everything raises ValueError in words."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.elements = data, 0, 0

    def header(self) -> Header:
        if self.bytes(len(MAGIC)) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, expected 2 or 3 in little-endian order")
        tensor_count, key_count = self.number("Q"), self.number("Q")
        self.vet_count(tensor_count, LEAST_TENSOR, "tensors")
        self.vet_count(key_count, LEAST_KEY, "keys")
        values: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.text(LONGEST_NAME)
            if key in values:
                raise ValueError(f"the key {key!r} stands there twice")
            values[key] = self.value(self.number("I"), key)
        return Header(values, self.tensors(tensor_count, _alignment(values)))

    def bytes(self, count: int) -> bytes:
        start = self.skip(count)
        return self.data[start : start + count]

    def skip(self, count: int) -> int:
        """Go on by so many bytes, which must be there; the place before."""
        if count > len(self.data) - self.at:
            raise ValueError(
                f"it ends at byte {len(self.data)}, and {count} bytes are announced at {self.at}"
            )
        start, self.at = self.at, self.at + count
        return start

    def number(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        return struct.unpack_from(f"<{kind}", self.data, self.skip(size))[0]

    def text(self, longest: int | None = None) -> str:
        length = self.number("Q")
        if longest is not None and length > longest:
            raise ValueError(f"a text at byte {self.at} has {length} bytes, more than {longest}")
        try:
            return self.bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the text that ends at byte {self.at} is not UTF-8") from error

    def vet_count(self, count: int, least_bytes: int, what: str) -> None:
        """Refuse to begin to read more things than the file has room for."""
        if count * least_bytes > len(self.data) - self.at:
            raise ValueError(
                f"it announces {count} {what}, for which {len(self.data)} bytes are too few"
            )

    def value(self, kind: int, key: str) -> Any:
        """The value of a key; of an array only its length."""
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"the key {key!r} has the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind != TEXT and kind not in NUMBERS:
            raise ValueError(
                f"the key {key!r} is an array of type {kind}, expected numbers or texts"
            )
        size = 8 if kind == TEXT else struct.calcsize(NUMBERS[kind])
        self.vet_count(count, size, f"elements of {key!r}")
        self.elements += count
        if self.elements > MOST_ELEMENTS:
            raise ValueError(f"its arrays have more than {MOST_ELEMENTS} elements")
        if kind == TEXT:
            for _ in range(count):
                self.text(LONGEST_ELEMENT)
        else:
            self.skip(count * size)
        return range(count)

    def tensors(self, count: int, alignment: int) -> dict[str, Sequence[int]]:
        shapes: dict[str, Sequence[int]] = {}
        ends: list[tuple[int, int, str]] = []
        for _ in range(count):
            name = self.text(LONGEST_NAME)
            if name in shapes:
                raise ValueError(f"the tensor {name!r} stands there twice")
            dimensions = self.number("I")
            if not 0 < dimensions <= MOST_DIMENSIONS:
                raise ValueError(f"the tensor {name!r} has {dimensions} dimensions")
            shapes[name] = [self.number("Q") for _ in range(dimensions)]
            size = _bytes_of(shapes[name], self.number("I"), name)
            start = self.number("Q")
            if start % alignment:
                raise ValueError(
                    f"the tensor {name!r} begins at {start}, no multiple of {alignment}"
                )
            ends.append((start, start + size, name))
        room = len(self.data) - -(-self.at // alignment) * alignment
        taken = 0
        for start, end, name in sorted(ends):
            if start < taken:
                raise ValueError(f"the tensor {name!r} overlaps another one")
            if end > room:
                raise ValueError(f"the tensor {name!r} ends {end - room} bytes behind it")
            taken = end
        return shapes


def _alignment(values: Mapping[str, Any]) -> int:
    """Tensors begin at multiples of it: a power of two."""
    found = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(found) is not int or not 0 < found <= LARGEST_ALIGNMENT or found & (found - 1):
        raise ValueError(f"general.alignment is {found!r:.50}, expected a power of two")
    return found


def _bytes_of(shape: Sequence[int], kind: int, name: str) -> int:
    if kind not in KINDS_OF_TENSORS:
        raise ValueError(f"the tensor {name!r} has the unknown type {kind}")
    per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    elements = 1
    for width in shape:
        elements *= width
    if not elements or shape[0] % per_block:
        raise ValueError(
            f"the tensor {name!r} has the shape {list(shape)}, in blocks of {per_block}"
        )
    return elements // per_block * block_bytes


def _vet_sizes(header: Header) -> None:
    """Refuse sizes that no tensor of the file has: transformers would build a model of them first."""
    architecture = header.values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ValueError(f"general.architecture is {architecture!r:.50}, expected a name")
    if not header.tensors:
        raise ValueError("it holds no tensors")
    largest = max(width for shape in header.tensors.values() for width in shape)
    for name in REQUIRED:
        found = header.values.get(f"{architecture}.{name}")
        if type(found) is not int or found < 1:
            raise ValueError(
                f"{architecture}.{name} is {found!r:.50}, expected a positive whole number"
            )
    for key, value in header.values.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key:
            continue
        most = len(header.tensors) if name == "block_count" else largest
        is_size = name.endswith(SIZES) and not name.endswith(NO_SIZES)
        if is_size and isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"{key} is {value}, but the tensors allow for {most} at most")
