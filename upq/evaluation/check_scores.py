"""Scores of instruction checks: IFEval's four shares, their intervals, and what changed between two models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upq.evaluation.ifeval import PromptResult
from upq.evaluation.intervals import Paired, Share, paired

Rule = Literal["strict", "loose"]


@dataclass(frozen=True, kw_only=True)
class Totals:
    """IFEval's four scores over what could be judged. Instructions of one prompt are not independent, so the
    intervals of the instruction scores are somewhat too narrow.
    """

    prompt_strict: Share
    prompt_loose: Share
    instruction_strict: Share
    instruction_loose: Share
    unavailable: int  # instructions without a verdict

    def row(self) -> dict[str, Any]:
        """The scores as flat numbers: NAME, NAME_low and NAME_high for each; n and n_instructions judged."""
        shares = {name: value for name, value in vars(self).items() if isinstance(value, Share)}
        found: dict[str, Any] = {name: share.value for name, share in shares.items()}
        for name, share in shares.items():
            found[f"{name}_low"], found[f"{name}_high"] = share.interval
        counts = {"n": self.prompt_strict.of, "n_instructions": self.instruction_strict.of}
        return found | counts | {"unavailable": self.unavailable}


def totals(results: Sequence[PromptResult]) -> Totals:
    """The four scores over what could be judged."""
    verdicts = [verdict for result in results for verdict in result.verdicts]
    return Totals(
        prompt_strict=_share(result.strict for result in results),
        prompt_loose=_share(result.loose for result in results),
        instruction_strict=_share(verdict.strict for verdict in verdicts),
        instruction_loose=_share(verdict.loose for verdict in verdicts),
        unavailable=sum(verdict.strict is None for verdict in verdicts),
    )


def by_type(results: Iterable[PromptResult]) -> dict[str, Share]:
    """instruction id -> share followed strictly, sorted by id."""
    outcomes: dict[str, list[bool | None]] = {}
    for result in results:
        for verdict in result.verdicts:
            outcomes.setdefault(verdict.instruction_id, []).append(verdict.strict)
    return {name: _share(found) for name, found in sorted(outcomes.items())}


def compare(
    before: Sequence[PromptResult], after: Sequence[PromptResult], rule: Rule = "strict"
) -> Paired:
    """McNemar's test over whole prompts; a prompt that one side lacks or could not judge is left out."""
    return paired(
        {one.key: getattr(one, rule) for one in before},
        {one.key: getattr(one, rule) for one in after},
    )


def _share(outcomes: Iterable[bool | None]) -> Share:
    judged = [one for one in outcomes if one is not None]
    return Share(sum(judged), len(judged))
