"""An answer of six tokens that three models have read, without a model: a piece of two tokens, markup, a line break."""

from __future__ import annotations

from typing import Any

from upq.compare import Comparison, Report, Seen, TextPiece
from upq.decode import Decoding

TEXTS = {1: "The", 2: " <b>", 3: "\n", 4: "\ufffd", 5: "<|im_end|>"}
IDS = [1, 2, 4, 4, 3, 5]
PIECES = [
    TextPiece("The", 0, 1),
    TextPiece(" <b>", 1, 2),
    TextPiece("🦊", 2, 4),
    TextPiece("\n", 4, 5),
    TextPiece("<|im_end|>", 5, 6),
]
BEST = [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625), (5, 0.03)]


def seen(kl: list[float], flips: set[int], differs: list[float]) -> Seen:
    flipped = [at in flips for at in range(len(IDS))]
    return Seen([BEST] * len(IDS), [0.5] * len(IDS), kl, flipped, differs)


def comparison(differs: list[float] | None = None, is_cut: bool = False) -> Comparison:
    models = {
        "FP16": seen([0.0] * 6, set(), differs or []),
        "INT4": seen([0.0, 0.1, 0.0, 0.2, 0.0, 0.0], set(), differs or []),
        "INT2": seen([0.05, 0.6, 0.0, 2.5, 0.0, 0.0], {1, 3}, differs or []),
    }
    return Comparison(IDS, PIECES, models, TEXTS, is_cut)


def report(**known: Any) -> Report:
    models = {
        "FP16": {"model": "org/model", "method": "", "bits_per_weight": 16.0},
        "INT4": {"model": "org/model", "method": "upq", "bits_per_weight": 4.5},
        "INT2": {"model": "org/model", "method": "upq", "bits_per_weight": 2.25},
    }
    usual: dict[str, Any] = {
        "comparison": comparison(),
        "question": "Why?",
        "system": "",
        "source": "FP16",
        "decoding": Decoding(),
        "run": 3,
        "models": models,
    }
    return Report(**(usual | known))
