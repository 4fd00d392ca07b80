"""The precisions of a model: what each is called, by people and in settings, and how many bits it has."""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args


class Precision(Enum):
    """A precision. Its `name`, such as INT4, is what people read and what artifacts and the store hold."""

    FP16 = 16
    INT4 = 4
    INT2 = 2

    @property
    def bits(self) -> int:
        """Bits of a weight; of a packed one those of its code, without its share of the scales."""
        return self.value

    @property
    def key(self) -> str:
        """The name in settings, stages and curves, such as int4."""
        return self.name.lower()


#: The precisions that a run makes, in that order.
QUANTIZED = (Precision.INT4, Precision.INT2)
#: The names of all precisions, the reference first.
PrecisionName = Literal["FP16", "INT4", "INT2"]
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
