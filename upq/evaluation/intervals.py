"""How sure a score is, and whether two models differ: intervals at 95 % and a paired test, nothing approximated
where counts are small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NORMAL_QUANTILE_95 = 1.959964
#: Resamplings of a bootstrap.
DRAWS = 2000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """`passed` of `of` independent trials. Shares of nothing are 0, and their interval is 0 to 1."""

    passed: int
    of: int

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.passed / self.of if self.of else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's score interval (Wilson, 1927) at 95 %."""
        if not self.of:
            return 0.0, 1.0
        z, n, p = NORMAL_QUANTILE_95, self.of, self.value
        middle = p + z**2 / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        width = 1 + z**2 / n
        # Exact at both ends, where rounding would leave 1e-17.
        low = 0.0 if self.passed == 0 else (middle - half) / width
        high = 1.0 if self.passed == n else (middle + half) / width
        return low, high


@dataclass(frozen=True)
class Paired:
    """The same items under two models. lost: passed before and failed after; gained: the reverse; pairs: all that
    both models have an outcome for. Items with equal outcomes say nothing about the difference.
    """

    lost: int
    gained: int
    pairs: int

    @property
    def p(self) -> float:
        """McNemar's exact test, two-sided: how likely a split of the changed items at least as uneven as this one
        is where both models are equally good. 1 where nothing changed.
        """
        changed = self.lost + self.gained
        fewer = min(self.lost, self.gained)
        tail = sum(math.comb(changed, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / 2**changed)


def paired(before: Mapping[Any, bool | None], after: Mapping[Any, bool | None]) -> Paired:
    """Compare outcomes by item; an item that one side lacks, or has None for, is left out."""
    pairs = [
        (outcome, after[key])
        for key, outcome in before.items()
        if outcome is not None and after.get(key) is not None
    ]
    lost = sum(old and not new for old, new in pairs)
    gained = sum(bool(new) and not old for old, new in pairs)
    return Paired(lost, gained, len(pairs))


def bootstrap_mean(sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> Interval:
    """The 95 % percentile interval of sum(sums) / sum(counts), over clusters drawn with replacement.

    sums[i] is the total of the counts[i] values of cluster i, such as the tokens of one answer, which depend on each
    other and are therefore drawn together. Raises ValueError where there is no cluster.
    """
    if not sums or len(sums) != len(counts):
        raise ValueError(f"{len(sums)} sums and {len(counts)} counts; expected as many, and one.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(sums), (DRAWS, len(sums)), generator=generator)
    totals = torch.tensor(sums, dtype=torch.float64)[drawn].sum(1)
    means = totals / torch.tensor(counts, dtype=torch.float64)[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
