"""What blind votes say: for each pair of precisions how often one was found better, with an interval and a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from upq.config import PRECISIONS, PrecisionName
from upq.evaluation.intervals import Interval, Share

#: Fewer votes that decided for one side say too little.
FEW_DECIDED = 20
HALF = 0.5

Pair = tuple[PrecisionName, PrecisionName]


@dataclass(frozen=True)
class Tally:
    """The votes on a pair, FP16 or the one with more bits first.

    same: pairs of equal answers, on which nobody was asked; skipped: those that nobody wanted to judge.
    """

    pair: Pair
    wins: int = 0
    losses: int = 0
    ties: int = 0
    bad: int = 0
    same: int = 0
    skipped: int = 0

    @property
    def decided(self) -> int:
        """Votes for one of the two."""
        return self.wins + self.losses

    @property
    def voted(self) -> int:
        """All votes of people."""
        return self.decided + self.ties + self.bad

    @property
    def share(self) -> float:
        """Wins of the first among the decided votes, 0 to 1; 0 where nothing was decided."""
        return Share(self.wins, self.decided).value

    @property
    def interval(self) -> Interval:
        """Wilson's 95 % interval of `share`."""
        return Share(self.wins, self.decided).interval

    @property
    def verdict(self) -> str:
        """What the votes show, in words: nothing where there are few, or where the interval spans a half."""
        if self.decided < FEW_DECIDED:
            return f"too few: {self.decided} of {FEW_DECIDED} decided votes"
        low, high = self.interval
        if low <= HALF <= high:
            return "no difference shown"
        return f"{self.pair[0] if low > HALF else self.pair[1]} was found better"

    def as_values(self) -> dict[str, object]:
        """All figures by name, for programs."""
        low, high = self.interval
        counts = {
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "both_bad": self.bad,
            "same_answer": self.same,
            "skipped": self.skipped,
        }
        share = self.share if self.decided else None
        figures = {"share": share, "low": low, "high": high, "verdict": self.verdict}
        return {"first": self.pair[0], "second": self.pair[1], **counts, **figures}


def pairs_of(precisions: Iterable[str]) -> list[Pair]:
    """All pairs of the precisions that there are, the one with more bits first in each."""
    there = set(precisions)
    return list(combinations([name for name in PRECISIONS if name in there], 2))


def tallies(outcomes: Iterable[tuple[str, str, str]]) -> list[Tally]:
    """Count (shown as A, shown as B, choice) for each pair that was shown. Which one was A makes no difference."""
    counts = {pair: Counter[str]() for pair in pairs_of(PRECISIONS)}
    for shown_a, shown_b, choice in outcomes:
        pair = next(pair for pair in counts if set(pair) == {shown_a, shown_b})
        counts[pair][winner(shown_a, shown_b, choice) or choice] += 1
    return [
        Tally(
            pair,
            wins=found[pair[0]],
            losses=found[pair[1]],
            ties=found["tie"],
            bad=found["bad"],
            same=found["same"],
            skipped=found["skipped"],
        )
        for pair, found in counts.items()
        if found
    ]


def winner(shown_a: str, shown_b: str, choice: str) -> str:
    """The precision that a choice names as the better one; "" where it names none."""
    return {"A": shown_a, "B": shown_b}.get(choice, "")
