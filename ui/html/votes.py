"""The columns in which blind votes on a pair of precisions are shown."""

from __future__ import annotations

from ui.html.markup import Html, join, tag
from upq.evaluation import Tally
from upq.units import percent

TALLY_HEAD = (
    "pair", "first better", "second better", "ties", "both bad", "same answer", "first's share", "verdict",
)  # fmt: skip
#: Which of these hold numbers.
TALLY_NUMBERS = range(1, 7)
SHARE_MEANING = "The share is of the votes that decided for one of the two, with its 95 % interval."


def tally_cells(tally: Tally) -> list[object]:
    """The votes on a pair, column by column."""
    counts = [tally.wins, tally.losses, tally.ties, tally.bad, tally.same]
    return [" v ".join(tally.pair), *counts, _share(tally), tally.verdict]


def _share(tally: Tally) -> Html:
    """The share of the first of the pair, with its interval; nothing where nobody decided."""
    if not tally.decided:
        return Html()
    low, high = (percent(end, 0).removesuffix(" %") for end in tally.interval)
    ends = tag("small", f" {low}\u2013{high}", title="95 % interval")
    return join([percent(tally.share, 0), ends])
