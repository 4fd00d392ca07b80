"""FP16 and the baselines once for each model, however many runs measured them; and the rows that a reader asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ui.results.comparison import ResultRow, Score

#: Figures of one model on the same answers differ by less on two machines, and by more on other answers.
SAME_FIGURE = 1e-3


def merged(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return FP16, the runs' own models, then the baselines; equal measurements of FP16 or of a baseline are one row.

    A baseline that was measured on other answers stays apart, behind the last of the runs that it was measured beside.
    FP16 agrees with itself on any answers, so it is one row, without a perplexity where that differs. A row of several
    runs has no run, and nothing that is of one run: no method, no time, no command.
    """
    groups: list[list[ResultRow]] = []
    for row in filter(_is_shared, rows):
        own = next((group for group in groups if _same(group[0], row)), None)
        if own is None:
            groups.append([row])
        else:
            own.append(row)
    found = [_one(group, any(_rivals(group, other) for other in groups)) for group in groups]
    baselines = [row for row in found if row.baseline]
    ordered = [row for row in found if not row.baseline]
    for run in dict.fromkeys(row.run for row in rows):
        ordered += [row for row in rows if row.run == run and not _is_shared(row)]
        ordered += [row for row in baselines if row.is_apart and row.runs[-1] == run]
    return [*ordered, *(row for row in baselines if not row.is_apart)]


def _is_shared(row: ResultRow) -> bool:
    """Whether a row is of FP16 or of a baseline, which other runs of the model measure as well."""
    return row.baseline or row.label == "FP16"


def _same(row: ResultRow, other: ResultRow) -> bool:
    names = ("model", "label", "tokens") if row.baseline else ("model", "label")
    figures = ("kl", "top1", "bits_per_weight", *(("ppl",) if row.baseline else ()))
    return all(getattr(row, name) == getattr(other, name) for name in names) and all(
        _close(getattr(row, name), getattr(other, name)) for name in figures
    )


def _close(value: float | None, other: float | None) -> bool:
    if value is None or other is None:
        return value is other
    return math.isclose(value, other, rel_tol=SAME_FIGURE, abs_tol=SAME_FIGURE**2)


def _rivals(group: Sequence[ResultRow], other: Sequence[ResultRow]) -> bool:
    """Whether two groups measured one model on one grid, but not with the same figures."""
    names = ("model", "label", "bits_per_weight")
    return group is not other and all(
        getattr(group[0], name) == getattr(other[0], name) for name in names
    )


def _one(group: Sequence[ResultRow], is_apart: bool) -> ResultRow:
    newest = group[-1]
    speeds = [row.tokens_per_s for row in group if row.tokens_per_s is not None]
    return replace(
        newest,
        run=None,
        runs=tuple(row.run for row in group if row.run is not None),
        is_apart=is_apart,
        run_name="",
        slot="plain" if newest.baseline else "fp16",
        method="",
        preset="",
        tokens=newest.tokens if len({row.tokens for row in group}) == 1 else None,
        ppl=newest.ppl if all(_close(row.ppl, newest.ppl) for row in group) else None,
        tokens_per_s=speeds[-1] if speeds else None,
        run_seconds=None,
        training_tokens=None,
        peak_bytes=None,
        gpu_peak_bytes=None,
        seed=None,
        machine="",
        commit="",
        command="",
        scores=_largest_scores(group),
    )


def _largest_scores(group: Sequence[ResultRow]) -> dict[str, Score]:
    """Return of each suite the score with the most trials; of equally many the newest."""
    found: dict[str, Score] = {}
    for row in group:
        for suite, score in row.scores.items():
            if suite not in found or score.count >= found[suite].count:
                found[suite] = score
    return found


def filtered(
    rows: Sequence[ResultRow],
    models: Sequence[str],
    methods: Sequence[str],
    precisions: Sequence[str],
) -> list[ResultRow]:
    """Return the rows of these models, methods and precisions; nothing chosen of a kind means all of it.

    FP16 and baselines are of no method, and stay beside each; a baseline that stands apart goes with its runs.
    """
    found = [
        row
        for row in rows
        if (not models or row.model in models)
        and (not methods or not row.method or row.method in methods)
        and (not precisions or row.precision in precisions)
    ]
    shown = {row.run for row in found}
    return [row for row in found if not row.is_apart or shown.intersection(row.runs)]
