"""How an answer ended: by itself or cut at the longest that is allowed, and whether it was repeating itself by then.

A model of two bits often says one thing over and over until it is cut. What it said may pass for "less than 40 words"
all the same, so the ending is kept beside the verdicts.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from upq.decode import repeats


@dataclass(frozen=True, kw_only=True)
class Ending:
    """finish: stop, the model ended its answer; length, it was cut. tokens: all of the answer's, its end token too."""

    finish: Literal["stop", "length"]
    tokens: int
    repeats: bool

    @property
    def is_cut(self) -> bool:
        """Whether the answer was cut."""
        return self.finish == "length"

    def to_json(self) -> dict[str, Any]:
        """The ending as plain JSON values."""
        return asdict(self)


def ending(answer: Sequence[int], ends: Container[int]) -> Ending:
    """Return the ending of an answer of token ids; ends are the ids that end one."""
    finish = "stop" if answer[-1] in ends else "length"
    return Ending(finish=finish, tokens=len(answer), repeats=repeats(answer))
