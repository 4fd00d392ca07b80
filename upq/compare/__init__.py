"""One answer read by several precisions of a model, token by token, and the instructions that a program can verify."""

from upq.compare.comparison import MOST_TOKENS, Answer, Comparison, compare
from upq.compare.instructions import Outcome, instructions_of, outcomes
from upq.compare.pieces import TextPiece, text_pieces
from upq.compare.reading import REFERENCE, Sampling, Seen, read_answer
from upq.compare.report import Report, as_lines, as_markdown, shown
from upq.compare.wordings import Instruction

__all__ = [
    "MOST_TOKENS",
    "REFERENCE",
    "Answer",
    "Comparison",
    "Instruction",
    "Outcome",
    "Report",
    "Sampling",
    "Seen",
    "TextPiece",
    "as_lines",
    "as_markdown",
    "compare",
    "instructions_of",
    "outcomes",
    "read_answer",
    "shown",
    "text_pieces",
]
