"""A tiny GGUF that loads, and headers that lie, written byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy
from tokenizers import pre_tokenizers

from tests.conftest import CHATML, SPECIAL_TOKENS

WIDTH, HEADS, INNER = 32, 2, 64
UINT8, UINT32, TEXT, ARRAY, UINT64 = 0, 4, 8, 9, 10


def write_tiny_gguf(path: Path) -> Path:
    """A random Llama of one block in F32, with a byte tokenizer and ChatML."""
    writer = gguf.GGUFWriter(str(path), "llama")
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (len(tokens) - len(SPECIAL_TOKENS)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.add_chat_template(CHATML)
    random = numpy.random.default_rng(0)
    square, wide = (WIDTH, WIDTH), (INNER, WIDTH)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
    }
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_down": wide[::-1]}
    shapes |= {f"blk.0.attn_{part}": square for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": wide for part in ("gate", "up")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def key(name: str, kind: int, value: Any) -> bytes:
    """A key with a number or a text."""
    packed = (
        text(value)
        if kind == TEXT
        else struct.pack({UINT8: "<B", UINT32: "<I", UINT64: "<Q"}[kind], value)
    )
    return text(name) + struct.pack("<I", kind) + packed


def array(name: str, kind: int, count: int, elements: bytes = b"") -> bytes:
    """A key with an array that announces `count` elements."""
    return text(name) + struct.pack("<IIQ", ARRAY, kind, count) + elements


def tensor(name: str, shape: list[int], kind: int = 0, start: int = 0) -> bytes:
    dimensions = b"".join(struct.pack("<Q", width) for width in shape)
    return text(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", kind, start)


def llama(**changes: int) -> list[bytes]:
    """The keys of a Llama of one block, some of them changed."""
    sizes = {
        "block_count": 1, "embedding_length": 8, "attention.head_count": 2,
        "feed_forward_length": 16, "context_length": 64,
    }  # fmt: skip
    sizes |= {name.replace("__", "."): value for name, value in changes.items()}
    architecture = key("general.architecture", TEXT, "llama")
    return [architecture, *(key(f"llama.{name}", UINT32, value) for name, value in sizes.items())]


def a_file(keys: list[bytes], tensors: list[bytes], room: int = 4096) -> bytes:
    """A file with that header and so many zero bytes behind it."""
    return header(len(tensors), len(keys)) + b"".join([*keys, *tensors]) + bytes(room)


_EMBEDDING = tensor("token_embd.weight", [8, 16])
#: What is wrong -> (bytes, words of the message).
LIES: dict[str, tuple[bytes, str]] = {
    "array without end": (header(0, 1) + array("x", UINT8, 2**62) + bytes(64), "elements of 'x'"),
    "array of texts without end": (a_file([array("x", TEXT, 2**40)], []), "elements of 'x'"),
    "array of arrays": (a_file([array("x", ARRAY, 1)], []), "array of type 9"),
    "array of too many": (
        a_file([array("x", UINT8, 2**23, bytes(2**23))], []), "more than 4194304 elements"
    ),
    "endless token": (
        a_file([array("x", TEXT, 1, text("a" * 5000))], []), "5000 bytes, more than 4096"
    ),
    "keys without end": (header(0, 2**60) + bytes(64), "announces 1152921504606846976 keys"),
    "tensors without end": (header(2**60, 0) + bytes(64), "1152921504606846976 tensors"),
    "text without end": (
        header(0, 1) + text("x") + struct.pack("<IQ", TEXT, 2**63) + bytes(64), "bytes are announced"
    ),
    "name without end": (header(0, 1) + struct.pack("<Q", 2**63) + bytes(64), "more than 512"),
    "key that is not UTF-8": (
        header(0, 1) + struct.pack("<Q", 1) + b"\xff" + bytes(64), "is not UTF-8"
    ),
    "key twice": (a_file([key("x", UINT8, 1)] * 2, []), "'x' stands there twice"),
    "unknown type": (header(0, 1) + text("x") + struct.pack("<I", 77) + bytes(64), "unknown type 77"),
    "version 1": (header(0, 0, 1) + bytes(64), "version is 1"),
    "big-endian": (header(0, 0, 3 << 24) + bytes(64), "version is 50331648"),
    "no tensors": (a_file(llama(), []), "holds no tensors"),
    "architecture is a number": (
        a_file([key("general.architecture", UINT32, 5)], [_EMBEDDING]), "general.architecture is 5"
    ),
    "no architecture": (a_file([], [_EMBEDDING]), "general.architecture is None"),
    "odd alignment": (
        a_file([*llama(), key("general.alignment", UINT32, 3)], [_EMBEDDING]), "power of two"
    ),
    "alignment 0": (
        a_file([*llama(), key("general.alignment", UINT32, 0)], [_EMBEDDING]), "power of two"
    ),
    "alignment a text": (
        a_file([*llama(), key("general.alignment", TEXT, "8")], [_EMBEDDING]), "power of two"
    ),
    "blocks without end": (a_file(llama(block_count=2**31), [_EMBEDDING]), "the tensors allow for 1"),
    "no blocks": (a_file(llama(block_count=0), [_EMBEDDING]), "llama.block_count is 0"),
    "width without end": (
        a_file(llama(embedding_length=2**31), [_EMBEDDING]), "the tensors allow for 16"
    ),
    "heads without end": (
        a_file(llama(attention__head_count=2**31), [_EMBEDDING]), "the tensors allow for 16"
    ),
    "tensor behind the end": (a_file(llama(), [tensor("t", [8, 2**20])]), "bytes behind it"),
    "tensor of 2**64": (a_file(llama(), [tensor("t", [2**32, 2**32])]), "bytes behind it"),
    "tensor far away": (a_file(llama(), [tensor("t", [8], 0, 2**40)]), "bytes behind it"),
    "tensor at no multiple": (a_file(llama(), [tensor("t", [8], 0, 7)]), "no multiple of 32"),
    "tensor of nothing": (a_file(llama(), [tensor("t", [0, 8])]), "has the shape [0, 8]"),
    "tensor of half a block": (a_file(llama(), [tensor("t", [33], 2)]), "in blocks of 32"),
    "tensor of unknown type": (a_file(llama(), [tensor("t", [8], 4711)]), "unknown type 4711"),
    "tensor of nine dimensions": (a_file(llama(), [tensor("t", [1] * 9)]), "has 9 dimensions"),
    "tensor twice": (a_file(llama(), [tensor("t", [8])] * 2), "'t' stands there twice"),
    "tensors on one place": (
        a_file(llama(), [tensor("t", [8]), tensor("u", [8])]), "overlaps another one"
    ),
}  # fmt: skip
