"""Which items of a check are listed: the filters that it has, each with the names of its items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from upq.evaluation import PromptResult, scores

Filter = Literal["flipped", "lost", "gained", "cut", "repeats", "failed", "all"]
#: Precision -> outcomes in the suite's order, as upq.evaluation.scores.outcomes has them.
Results = Mapping[str, Sequence[Any]]
BASE = scores.BASE


def filters(results: Results) -> dict[Filter, list[Hashable]]:
    """Return each filter that these results have with the names of its items in the suite's order, the usual first.

    Without FP16 and another model nothing can flip, and where no ending was kept nothing is known to be cut.
    """
    passed = {name: dict(map(scores.item, own)) for name, own in results.items() if own}
    keys = list(dict.fromkeys(key for outcomes in passed.values() for key in outcomes))
    found: dict[Filter, list[Hashable]] = {}
    if BASE in passed and len(passed) > 1:
        found["flipped"] = [key for key in keys if _lost(passed, key) or _gained(passed, key)]
        found["lost"] = [key for key in keys if _lost(passed, key)]
        found["gained"] = [key for key in keys if _gained(passed, key)]
    answers = [answer for own in results.values() for answer in own]
    ended = [one for one in answers if isinstance(one, PromptResult) and one.ending]
    if ended:
        cut = {answer.key for answer in ended if answer.is_cut}
        repeating = {answer.key for answer in ended if answer.repeats}
        found["cut"] = [key for key in keys if key in cut]
        found["repeats"] = [key for key in keys if key in repeating]
    failed = [key for key in keys if any(own.get(key) is False for own in passed.values())]
    return {**found, "failed": failed, "all": keys}


def chosen_filter(found: Mapping[Filter, Any], wanted: Filter) -> Filter:
    """Return the wanted filter if these results have it, else what failed."""
    return wanted if wanted in found else "failed"


def _lost(passed: Mapping[str, Mapping[Hashable, bool | None]], key: Hashable) -> bool:
    """Whether FP16 passed what another model failed."""
    return passed[BASE].get(key) is True and _others(passed, key, False)


def _gained(passed: Mapping[str, Mapping[Hashable, bool | None]], key: Hashable) -> bool:
    """Whether FP16 failed what another model passed."""
    return passed[BASE].get(key) is False and _others(passed, key, True)


def _others(
    passed: Mapping[str, Mapping[Hashable, bool | None]], key: Hashable, verdict: bool
) -> bool:
    return any(own.get(key) is verdict for name, own in passed.items() if name != BASE)
