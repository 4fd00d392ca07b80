"""What the Results tab and the report compare: each chosen run with its rows, curves, scores and origin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ui.app_state import speed_note
from ui.html import METHOD_NAMES, Point, commit_words, machine_words, model_name
from upq.config import (
    QUANTIZED,
    CheckConfig,
    Precision,
    RunConfig,
    as_text,
    command,
    preset,
    settings,
)
from upq.context import SeriesNames, training_tokens
from upq.errors import UserError
from upq.evaluation import scores as check_report
from upq.jobs import key_of
from upq.store import Run, Store

#: So many runs can be told apart in one chart.
MAX_RUNS = 8
#: Suite -> its main figure and the number of trials behind it, as upq.evaluation.scores.rows names them.
FIGURES = {
    "wikitext2": ("ppl", "tokens"),
    "mmlu": ("accuracy", "n"),
    "ifeval": ("prompt_strict", "n"),
    "builtin": ("prompt_strict", "n"),
}
#: Suite -> precision -> what its newest finished check found, in the suite's order.
Checks = dict[str, dict[str, list[Any]]]


@dataclass(frozen=True)
class Score:
    """The outcome of an evaluation suite: its main figure, the 95 % interval of it, and the number of trials.

    cut and repeats count answers, where the suite has some and it is known how they ended.
    """

    value: float
    low: float
    high: float
    count: int
    cut: int | None = None
    repeats: int | None = None


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One artifact or baseline; None means that something was not measured, or is not of one run.

    run is the run that made or measured it, None of a row that stands for several, which are in runs; is_apart marks
    one of those whose model was measured on other answers as well. slot is its colour class in charts.
    served_kl, served_top1 and served_ppl are what the engine that answers gives on the same tokens, where it computes
    otherwise; served_by names it. scores holds the outcome of the newest check of each suite.
    """

    run: int | None
    model: str
    method: str
    preset: str
    label: str  # "INT4", "RTN INT2", ...
    precision: str
    size_bytes: int | None
    bits_per_weight: float | None
    kl: float | None
    kl_low: float | None
    kl_high: float | None
    kl_p95: float | None
    top1: float | None
    agreed_median: float | None
    ppl: float | None
    tokens: int | None
    served_kl: float | None
    served_top1: float | None
    served_ppl: float | None
    served_by: str | None
    tokens_per_s: float | None
    run_seconds: float | None
    training_tokens: int | None
    peak_bytes: int | None
    gpu_peak_bytes: int | None
    seed: int | None
    machine: str
    commit: str
    command: str
    run_name: str = ""
    runs: tuple[int, ...] = ()
    is_apart: bool = False
    slot: str = "plain"
    scores: Mapping[str, Score] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        """Whether this is a measurement without an artifact."""
        return self.label != self.precision


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One compared run.

    slot is its colour class. curves holds (step, value) for each series, minutes holds (minutes that the run had been
    worked on, value), without the points of which that is not known. config is None if it cannot be read.
    """

    run: Run
    slot: str
    rows: Sequence[ResultRow]
    curves: Mapping[str, Sequence[Point]]
    minutes: Mapping[str, Sequence[Point]]
    tokens: Mapping[str, int]
    config: RunConfig | None
    command: str
    checks: Checks

    @property
    def name(self) -> str:
        """A name short enough for a legend, such as "#4 UPQ"."""
        return f"#{self.run.id} {METHOD_NAMES.get(self.run.method, self.run.method)}"


@dataclass(frozen=True)
class Setting:
    """A setting that two runs differ in, as text. usual tells whether it is the value of the run's preset."""

    path: str
    values: tuple[str, str]
    usual: tuple[bool, bool]


def comparable(store: Store) -> list[Run]:
    """Return the quantization runs that have begun, newest first."""
    return [run for run in store.runs(limit=sys.maxsize, kind="quantize") if run.started_at]


def newest(runs: Sequence[Run]) -> list[int]:
    """Return the ids of the newest finished runs of the model that was finished last, newest first."""
    done = [run for run in runs if run.state == "done"]
    return [run.id for run in done if run.model == done[0].model][:MAX_RUNS]


def gather(store: Store, run_ids: Sequence[int]) -> list[Subject]:
    """Return the chosen runs in the order of their numbers; ones that are gone are left out."""
    checks = _newest_checks(store, set(run_ids))
    runs = {run.id: run for run in comparable(store) if run.id in set(run_ids)}
    chosen = slots(sorted(runs)[:MAX_RUNS])
    return [
        _subject(store, runs[run_id], slot, checks.get(run_id, {}))
        for run_id, slot in chosen.items()
    ]


def slots(run_ids: Sequence[int]) -> dict[int, str]:
    """Return the colour class of each of MAX_RUNS runs or fewer: that of its number.

    Only where two numbers have the same one does the later run take the next that is free.
    """
    taken: dict[int, str] = {}
    for run_id in run_ids:
        wanted = [f"slot{(run_id + shift) % MAX_RUNS}" for shift in range(MAX_RUNS)]
        taken[run_id] = next(slot for slot in wanted if slot not in taken.values())
    return taken


def _subject(store: Store, run: Run, slot: str, checks: Checks) -> Subject:
    points = store.metrics(run.id)
    config = config_of(run)
    curves: dict[str, list[Point]] = {}
    minutes: dict[str, list[Point]] = {}
    for point in points:
        curves.setdefault(point["series"], []).append((point["step"], point["value"]))
        if point["at_s"] is not None:
            minutes.setdefault(point["series"], []).append((point["at_s"] / 60, point["value"]))
    tokens = training_tokens(points)
    origin = {
        "machine": machine_words(run),
        "commit": commit_words(run),
        "command": command(config) if config else "",
        "slot": slot,
    }
    scores = {
        (suite, name): score for suite in checks for name, score in scores_of(suite, checks[suite])
    }
    return Subject(
        run=run,
        slot=slot,
        rows=[
            _row(
                store,
                run,
                measured,
                scores,
                origin | {"training_tokens": _tokens_of(measured["label"], tokens, config)},
            )
            for measured in store.measurements(run.id)
        ],
        curves=curves,
        minutes=minutes,
        tokens=tokens,
        config=config,
        command=origin["command"],
        checks=checks,
    )


def _tokens_of(label: str, tokens: Mapping[str, int], config: RunConfig | None) -> int | None:
    """Count the tokens that an artifact was calibrated with and trained on.

    INT2 that starts from INT4 has had INT4's too.
    """
    made = [precision for precision in QUANTIZED if precision.name == label]
    if made == [Precision.INT2] and config and config.int2.start == Precision.INT4.key:
        made.append(Precision.INT4)
    keys = [precision.key for precision in made]
    stages = [*keys, *(SeriesNames(key).distill_stage for key in keys)]
    return sum(tokens.get(stage, 0) for stage in stages) or None


def _row(
    store: Store,
    run: Run,
    measured: dict[str, Any],
    scores: Mapping[tuple[str, str], Score],
    origin: dict[str, Any],
) -> ResultRow:
    label, precision, extra = measured["label"], measured["precision"], measured["extra"]
    speed = None
    if label == precision:
        speed = store.note(speed_note(key_of(run, precision, run.model)))
    stored = ("size_bytes", "bits_per_weight", "kl", "kl_p95", "top1", "ppl", "tokens")
    served = ("served_kl", "served_top1", "served_ppl", "served_by")
    extras = ("kl_low", "kl_high", "agreed_median")
    return ResultRow(
        run=run.id,
        run_name=run.name,
        model=model_name(run.model),
        method=run.method,
        preset=run.preset,
        label=label,
        precision=precision,
        **{name: measured[name] for name in (*stored, *served)},
        **{name: extra.get(name) for name in extras},
        tokens_per_s=speed,
        run_seconds=run.worked_s,
        peak_bytes=run.peak_bytes,
        gpu_peak_bytes=run.gpu_peak_bytes,
        seed=run.config["seed"],
        **origin,
        scores={suite: score for (suite, checked), score in scores.items() if checked == label},
    )


def _newest_checks(store: Store, run_ids: set[int]) -> dict[int, Checks]:
    """Return what was checked of each run.

    A precision that the newest check of a suite left out comes from an older one.
    """
    found: dict[int, Checks] = {}
    for check in store.runs(limit=sys.maxsize, kind="check"):
        if check.state != "done" or check.parent_id not in run_ids:
            continue
        suite = CheckConfig.from_values(check.config).suite
        own = found.setdefault(check.parent_id, {}).setdefault(suite, {})
        for precision, outcomes in check_report.outcomes(
            suite, store.check_results(check.id)
        ).items():
            own.setdefault(precision, outcomes)
    return found


def scores_of(suite: str, found: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Score]]:
    """Yield each precision with its score, of a suite's outcomes."""
    name, count = FIGURES[suite]
    for row in check_report.rows(suite, found):
        yield (
            row["precision"],
            Score(
                value=row[name],
                low=row[f"{name}_low"],
                high=row[f"{name}_high"],
                count=row[count],
                cut=row["cut"] if row.get("endings") else None,
                repeats=row["repeats"] if row.get("endings") else None,
            ),
        )


def config_of(run: Run) -> RunConfig | None:
    """Return the run's config as this version understands it; None if it does not."""
    try:
        return RunConfig.from_values(run.config)
    except UserError:
        return None


def differing(first: RunConfig, second: RunConfig) -> list[Setting]:
    """Return the settings in which two configs differ, in the order of the settings."""
    usual = [dict(settings(preset(config.preset, config.method))) for config in (first, second)]
    found = []
    for (path, spec), (_, other) in zip(settings(first), settings(second), strict=True):
        values = (spec["value"], other["value"])
        if values[0] != values[1]:
            texts = (as_text(values[0]), as_text(values[1]))
            marks = (values[0] == usual[0][path]["value"], values[1] == usual[1][path]["value"])
            found.append(Setting(path, texts, marks))
    return found


def same_yardstick(subjects: Sequence[Subject]) -> bool:
    """Tell whether all runs were measured on the same held-out answers, by FP16's own perplexity of them."""
    reference = (row for subject in subjects for row in subject.rows if row.label == "FP16")
    return len({(row.model, row.tokens, round(row.ppl or 0.0, 6)) for row in reference}) < 2
