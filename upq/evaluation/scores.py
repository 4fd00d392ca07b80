"""What a check run found, as plain rows: scores with 95 % intervals, and each precision tested against FP16."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upq.config import PRECISIONS, Precision
from upq.evaluation import mmlu, wikitext
from upq.evaluation.ifeval import PromptResult
from upq.evaluation.intervals import Paired, Share, paired
from upq.evaluation.mmlu import Marked
from upq.evaluation.wikitext import Chunk

#: What stored outcomes of a suite are read back as.
KINDS: dict[str, type[PromptResult] | type[Marked] | type[Chunk]] = {
    "builtin": PromptResult,
    "ifeval": PromptResult,
    "mmlu": Marked,
    "wikitext2": Chunk,
}
BASE = Precision.FP16.name
RULES = ("strict", "loose")


def outcomes(suite: str, stored: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Stored rows (precision, position, result) as outcomes by precision, FP16 first, in the suite's order."""
    found: dict[str, list[Any]] = {}
    order = sorted(stored, key=lambda row: (PRECISIONS.index(row["precision"]), row["position"]))
    for row in order:
        found.setdefault(row["precision"], []).append(KINDS[suite].from_json(row["result"]))
    return found


def item(outcome: PromptResult | Marked) -> tuple[Hashable, bool | None]:
    """What names an item within its suite, and whether it was passed, strictly; None where that was not judged."""
    if isinstance(outcome, Marked):
        return (outcome.subject, outcome.key), outcome.correct
    return outcome.key, outcome.strict


def rows(suite: str, found: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One row a precision: `precision`, the scores of the suite, NAME_low and NAME_high beside each.

    Where FP16 took part, lost and gained (items that it alone has right, and the reverse) and p (McNemar, exact);
    of WikiText-2, nll_difference with its interval.
    """
    scales: dict[str, Callable[..., dict[str, Any]]] = {"mmlu": _mmlu, "wikitext2": _wikitext}
    describe = scales.get(suite, _instructions)
    base = found.get(BASE, [])
    return [
        {"precision": precision, **describe(own, base if precision != BASE else [])}
        for precision, own in found.items()
    ]


def _instructions(own: Sequence[PromptResult], base: Sequence[PromptResult]) -> dict[str, Any]:
    row = totals(own).row() | endings(own)
    if base:
        row |= _tested(compare(base, own))
        row["p_loose"] = compare(base, own, "loose").p
    return row


def _mmlu(own: Sequence[Marked], base: Sequence[Marked]) -> dict[str, Any]:
    mean, (low, high) = mmlu.macro(own)
    row = _scored("accuracy", mmlu.micro(own))
    row |= {"macro": mean, "macro_low": low, "macro_high": high, "n": len(own)}
    if base:
        row |= _tested(mmlu.compare(base, own))
    groups = {
        "categories": mmlu.by_category(own),
        "subjects": mmlu.by_subject(own),
    }
    for name, shares in groups.items():
        row[name] = {
            group: _scored("accuracy", share) | {"n": share.of} for group, share in shares.items()
        }
    return row


def _wikitext(own: Sequence[Chunk], base: Sequence[Chunk]) -> dict[str, Any]:
    value, (low, high) = wikitext.perplexity(own)
    row = {"ppl": value, "ppl_low": low, "ppl_high": high}
    row |= {"tokens": sum(chunk.tokens for chunk in own), "chunks": len(own)}
    both = min(len(base), len(own))
    if both:
        lost, (low, high) = wikitext.difference(base[:both], own[:both])
        row |= {"nll_difference": lost, "nll_difference_low": low, "nll_difference_high": high}
    return row


def _scored(name: str, share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {name: share.value, f"{name}_low": low, f"{name}_high": high}


def _tested(test: Paired) -> dict[str, Any]:
    return {"lost": test.lost, "gained": test.gained, "p": test.p}


def readable(suite: str, row: Mapping[str, Any]) -> dict[str, str]:
    """A row as a person reads it: a score with its interval in one cell, and the test against FP16."""
    if suite == "wikitext2":
        cells = {"perplexity": _cell(row, "ppl", "{:,.2f}")}
        lost = _cell(row, "nll_difference", "{:+.4f}") if "nll_difference" in row else ""
        counts = {"nats lost a token": lost, "chunks": f"{row['chunks']:,}"}
        return {"model": row["precision"], **cells, **counts, "tokens": f"{row['tokens']:,}"}
    names = {"accuracy": "accuracy", "macro": "mean of subjects"}
    if suite != "mmlu":
        rules = [f"{unit}_{rule}" for unit in ("prompt", "instruction") for rule in RULES]
        names = {rule: rule.replace("_", " ") for rule in rules}
    cells = {title: _percentage(row, name) for name, title in names.items()}
    if suite != "mmlu":
        cells |= {"cut": _cut(row), "repeats": _of_known(row, "repeats")}
    tested: dict[str, str] = dict.fromkeys(("lost", "gained", "p"), "")
    if "p" in row:
        tested = {"lost": str(row["lost"]), "gained": str(row["gained"]), "p": p_value(row["p"])}
    return {"model": row["precision"], **cells, **tested, "n": f"{row['n']:,}"}


def _cell(row: Mapping[str, Any], name: str, form: str) -> str:
    value, low, high = (form.format(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def _percentage(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _cut(row: Mapping[str, Any]) -> str:
    """Count the answers that were cut, and those among them that were passed all the same."""
    passed = f", {row['cut_passed']} passed" if row["cut_passed"] else ""
    return f"{_of_known(row, 'cut')}{passed}"


def _of_known(row: Mapping[str, Any], name: str) -> str:
    """Count answers; if only some endings are known, of how many; "" where none is."""
    known = row["endings"]
    if not known:
        return ""
    return f"{row[name]}" if known == row["answers"] else f"{row[name]} of {known}"


def p_value(p: float) -> str:
    """Two significant digits, and no string of zeros."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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
        prompt_strict=_judged_share(result.strict for result in results),
        prompt_loose=_judged_share(result.loose for result in results),
        instruction_strict=_judged_share(verdict.strict for verdict in verdicts),
        instruction_loose=_judged_share(verdict.loose for verdict in verdicts),
        unavailable=sum(verdict.strict is None for verdict in verdicts),
    )


def endings(results: Sequence[PromptResult]) -> dict[str, Any]:
    """How the answers ended: `answers`, and of the `endings` that are known how many are cut, repeat themselves, and
    are passed although they were cut, which IFEval's rules allow.
    """
    known = [result for result in results if result.ending]
    cut = [result for result in known if result.is_cut]
    return {
        "answers": len(results),
        "endings": len(known),
        "cut": len(cut),
        "cut_passed": sum(result.strict is True for result in cut),
        "repeats": sum(result.repeats for result in known),
    }


def by_type(results: Iterable[PromptResult]) -> dict[str, Share]:
    """instruction id -> share followed strictly, sorted by id."""
    outcomes: dict[str, list[bool | None]] = {}
    for result in results:
        for verdict in result.verdicts:
            outcomes.setdefault(verdict.instruction_id, []).append(verdict.strict)
    return {name: _judged_share(found) for name, found in sorted(outcomes.items())}


def compare(
    before: Sequence[PromptResult], after: Sequence[PromptResult], rule: Rule = "strict"
) -> Paired:
    """McNemar's test over whole prompts; a prompt that one side lacks or could not judge is left out."""
    return paired(
        {result.key: getattr(result, rule) for result in before},
        {result.key: getattr(result, rule) for result in after},
    )


def _judged_share(outcomes: Iterable[bool | None]) -> Share:
    judged = [outcome for outcome in outcomes if outcome is not None]
    return Share(sum(judged), len(judged))
