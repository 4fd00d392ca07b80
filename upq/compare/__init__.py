"""One answer read by several precisions of a model, token by token, and the instructions that a program can verify."""

from upq.compare.comparison import Answer, Comparison, compare
from upq.compare.pieces import TextPiece, text_pieces
from upq.compare.reading import REFERENCE, Sampling, Seen, read_answer

__all__ = [
    "REFERENCE",
    "Answer",
    "Comparison",
    "Sampling",
    "Seen",
    "TextPiece",
    "compare",
    "read_answer",
    "text_pieces",
]
