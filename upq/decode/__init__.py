"""From a model to text: engines that take one token per sequence and step, and what writes with them."""

from upq.decode.choice import engine_for, native_engine
from upq.decode.draw import nucleus
from upq.decode.engine import Engine, Session, diverged
from upq.decode.generate import (
    DECODING_RANGES,
    REPLACEMENT,
    ROWS,
    Decoding,
    Piece,
    answers,
    end_ids,
    stream,
)
from upq.decode.loops import repeats, text_repeats
from upq.decode.native import NativeEngine
from upq.decode.reader import LastReader, Reader, shared_length
from upq.decode.served_linear import ServedLinear
from upq.decode.transformers_engine import TransformersEngine

__all__ = [
    "DECODING_RANGES",
    "REPLACEMENT",
    "ROWS",
    "Decoding",
    "Engine",
    "LastReader",
    "NativeEngine",
    "Piece",
    "Reader",
    "ServedLinear",
    "Session",
    "TransformersEngine",
    "answers",
    "diverged",
    "end_ids",
    "engine_for",
    "native_engine",
    "nucleus",
    "repeats",
    "shared_length",
    "stream",
    "text_repeats",
]
