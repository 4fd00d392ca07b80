"""From prompts to batches: rows of any source, answered by the teacher, tokenised, planned and padded."""

from upq.data.batches import Batch, Example, collate, plan_batches
from upq.data.dataset import Dataset, build, held_out
from upq.data.rows import read_rows

__all__ = [
    "Batch",
    "Dataset",
    "Example",
    "build",
    "collate",
    "held_out",
    "plan_batches",
    "read_rows",
]
