"""Runs beside each other: their curves in common charts, their settings, where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ui.html import (
    NO_VALUE,
    Html,
    Series,
    commit_words,
    duration,
    in_order,
    line_chart,
    linear_axis,
    log_axis,
    machine_words,
    notice,
    peak_memory,
    run_name,
    stage_name,
    stage_seconds,
    table,
    tag,
)
from ui.results.comparison import Subject, differing, same_yardstick
from upq.config import QUANTIZED, Precision
from upq.context import STAGES, UNNAMED, SeriesNames, curve_of, is_over_steps
from upq.store import Run

#: Curves over the steps of a training, by the name that people know them by.
SERIES_NAMES = {
    "jsd": "Distillation loss (JSD, nats)",
    "next_token": "Next-token loss (nats)",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens_per_s": "Training speed (tokens/s)",
    **{
        SeriesNames(
            precision.key
        ).held_out_kl: f"KL of {precision.name} on up to 8 held-out answers (nats)"
        for precision in QUANTIZED
    },
}
#: From this ratio of the longest run to the shortest, minutes are drawn on a logarithmic axis.
LOG_MINUTES = 12.0


def kl_over_minutes(subjects: Sequence[Subject]) -> Html:
    """Draw held-out KL while the runs were worked on; a model without a curve is a point where it was done."""
    series = [
        curve
        for precision in QUANTIZED
        for subject in subjects
        if (curve := kl_series(subject, precision)).points
    ]
    ends = [max(x for x, _ in curve.points) for curve in series]
    spread = max(ends, default=1.0) / max(min(ends, default=1.0), 1e-9)
    logarithmic = spread > LOG_MINUTES
    return line_chart(
        "KL to FP16 on up to 8 held-out answers (nats) against minutes",
        series,
        x_name="minutes of work, pauses not counted" + (", logarithmic" if logarithmic else ""),
        x_scale=log_axis if logarithmic else linear_axis,
        y_scale=log_axis,
        empty="A curve for each run, once it has been measured.",
    )


def kl_series(subject: Subject, precision: Precision) -> Series:
    """Return held-out KL of one precision of a run over minutes, INT4 dashed."""
    points = list(subject.minutes.get(SeriesNames(precision.key).held_out_kl, ()))
    name = f"{subject.name} {precision.name}"
    if not points:
        at = _done_after_s(subject.run, precision) / 60
        points = [(at, row.kl) for row in subject.rows if row.label == precision.name and row.kl]
        name += ", when it was done"
    return Series(name, subject.slot, points, precision is Precision.INT4, f"#{subject.run.id}")


def _done_after_s(run: Run, precision: Precision) -> float:
    """Return the seconds that a run had been worked on when a precision was made; all of them if that is unknown."""
    own = (precision.key, SeriesNames(precision.key).distill_stage)
    last = max(STAGES.index(name) for name in own)
    known = {name: run.stages[name] for name in STAGES[: last + 1] if name in run.stages}
    if known.keys() & set(own):
        return sum(stage_seconds(times, times["started"]) for times in known.values())
    measured = run.stages.get("measure", {}).get("seconds", 0.0)
    return run.worked_s - measured


def block_errors(subjects: Sequence[Subject], precision: Precision) -> Html:
    """Draw the error of each decoder block's output, before its training (dashed) and after."""
    series, names = [], SeriesNames(precision.key)
    for subject in subjects:
        before = subject.curves.get(names.block_before, ())
        after = subject.curves.get(names.block_after, ())
        series.append(Series(f"{subject.name} before", subject.slot, before, True, quiet=True))
        series.append(Series(subject.name, subject.slot, after, label=f"#{subject.run.id}"))
    return line_chart(
        f"{precision.name} block error, dashed before training",
        series,
        x_name="block",
        y_scale=log_axis,
        empty=f"None of these runs trained {precision.name} block by block.",
    )


def series_choices(subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """Return label and name of the curves over steps that any of the runs has, the loss first."""
    existing = {name for subject in subjects for name in subject.curves}
    over_steps = set(filter(is_over_steps, existing))
    known = [name for name in SERIES_NAMES if name in over_steps]
    return [(series_name(name), name) for name in [*known, *sorted(over_steps - {*known})]]


def series_name(series: str) -> str:
    """Return a curve's name as shown."""
    key, curve = curve_of(series)
    words = SERIES_NAMES.get(curve) or curve.replace("_", " ").capitalize()
    return words if key == UNNAMED else f"{words}, {key.upper()}"


def overlay(subjects: Sequence[Subject], series: str) -> Html:
    """Draw one curve of each run over its steps."""
    curves = [
        Series(
            subject.name, subject.slot, subject.curves.get(series, ()), label=f"#{subject.run.id}"
        )
        for subject in subjects
    ]
    empty = "None of these runs has this curve."
    return line_chart(series_name(series), curves, x_name="step", empty=empty)


def differences(first: Subject, second: Subject) -> Html:
    """Draw the settings in which two runs differ, with those marked that are the preset's."""
    if first.config is None or second.config is None:
        return notice("empty", "This version cannot read the settings of one of these runs.")
    found = differing(first.config, second.config)
    if not found:
        return notice("empty", f"#{first.run.id} and #{second.run.id} have the same settings.")

    def cell(text: str, usual: bool) -> Html:
        mark = tag("small", " preset") if usual else None
        return tag("span", text or NO_VALUE, mark, class_="usual" if usual else "changed")

    rows = [
        [tag("code", setting.path), *(map(cell, setting.values, setting.usual))]
        for setting in found
    ]
    head = ("setting", run_name(first.run), run_name(second.run))
    return table(head, rows, class_="differences")


def origins(subjects: Sequence[Subject], *, opened: bool = False) -> Html:
    """Draw for each run the line that repeats it, where it was executed, and what its stages took."""
    return tag("div", *(_origin(subject, opened) for subject in subjects), class_="origins")


def _origin(subject: Subject, opened: bool) -> Html:
    run = subject.run
    title = tag("summary", tag("i", class_=f"key {subject.slot}"), run_name(run), " ", run.name)
    return tag(
        "details",
        title,
        tag(
            "pre",
            subject.command or "This version cannot read the run's settings.",
            class_="command",
        ),
        tag("dl", *_facts(subject), class_="facts"),
        _stages(subject),
        open=opened,
    )


def _facts(subject: Subject) -> list[Html]:
    run = subject.run
    last: dict[str, Any] = run.environments[-1] if run.environments else {}
    versions = ", ".join(f"{name} {version}" for name, version in last.get("versions", {}).items())
    facts = [
        ("state", run.state),
        ("seed", run.config.get("seed")),
        ("time", duration(run.worked_s)),
        ("peak memory", peak_memory(run.peak_bytes, run.gpu_peak_bytes)),
        ("commit", commit_words(run) or "not kept"),
        ("machine", machine_words(run) or "not kept"),
        ("versions", versions or "not kept"),
    ]
    if run.error_message:
        facts.insert(1, ("reason", run.error_message))
    if len(run.environments) > 1:
        facts.append(("environments", f"{len(run.environments)}; the last one is shown"))
    return [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]


def _stages(subject: Subject) -> Html | None:
    taken = subject.run.stages
    stages = {name: taken[name] for name in in_order(taken)}
    if not stages:
        return None
    times = [duration(stage_seconds(stage, stage["started"])) for stage in stages.values()]
    tokens = [
        f"{subject.tokens[name]:,}" if name in subject.tokens else NO_VALUE for name in stages
    ]
    head = ("stage", *map(stage_name, stages))
    rows = [("time", *times), ("tokens", *tokens)]
    return table(head, rows, numeric=range(1, len(head)), class_="stages")


def remarks(subjects: Sequence[Subject]) -> Html:
    """Tell what a reader has to know before comparing: nothing is chosen, or the yardsticks differ."""
    if not subjects:
        return notice(
            "empty",
            "No run is chosen.",
            "Choose runs above; a run can be chosen once it has begun.",
        )
    if same_yardstick(subjects):
        return Html()
    return notice(
        "empty",
        "These runs were measured against different models or on different held-out answers.",
        "Their KL, top-1 and perplexity of FP16's answers are not on one scale.",
    )


def one_run_only() -> Html:
    """Tell why there are no differences where there are no two runs."""
    return notice("empty", "Choose two different runs to see what sets them apart.")


def all_block_errors(subjects: Sequence[Subject]) -> Html:
    """Draw the block errors of both precisions beside each other."""
    return tag(
        "div", *(block_errors(subjects, precision) for precision in QUANTIZED), class_="charts"
    )
