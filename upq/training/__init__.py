"""The two engines: block-wise reconstruction and distillation end to end."""

from upq.training.blockwise import BlockResult, Reconstruction, Start, reconstruct
from upq.training.distill import UNTIL
from upq.training.teacher import packed_teacher
from upq.training.trainables import norm_weights

__all__ = [
    "UNTIL",
    "BlockResult",
    "Reconstruction",
    "Start",
    "norm_weights",
    "packed_teacher",
    "reconstruct",
]
