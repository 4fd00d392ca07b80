"""From rows of the store to the HTML of the run panel, the estimate, the log and the history: pure functions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.charts import Series, block_chart, line_chart
from ui.html.markup import Html, join, tag
from ui.html.parts import notice, run_label, run_name, stage_share, table, time_left
from ui.html.words import NO_VALUE, duration, fixed, number, peak_memory, size, span, stage_name
from upq.config.schema import RunConfig
from upq.context import STAGES
from upq.quantize.estimate import Estimate
from upq.store.run import Run

STATE_MARKS = {
    "queued": "○ queued",
    "running": "◐ running",
    "done": "● done",
    "failed": "✗ failed",
    "cancelled": "\u2013 cancelled",
    "interrupted": "! interrupted",
}
NEXT_STEPS = {
    "failed": "Resume goes on from the last checkpoint; again starts over with the same settings.",
    "cancelled": "Resume goes on from the last checkpoint.",
    "interrupted": "It continues by itself as soon as a worker is free.",
}


def estimate_panel(estimate: Estimate) -> Html:
    """Time, memory and sizes before Start, and what will not be quantized."""
    sizes = [
        _fact("time", span(estimate.seconds_low, estimate.seconds_high)),
        _fact("memory", size(estimate.memory_bytes)),
        _fact("FP16", size(estimate.fp16_bytes), "fp16"),
        _fact("INT4", size(estimate.int4_bytes), "int4"),
        _fact("INT2", size(estimate.int2_bytes), "int2"),
    ]
    notes = [*estimate.notes, *(f"Not quantized: {name}" for name in estimate.skipped)]
    items = tag("ul", *(tag("li", note) for note in notes)) if notes else None
    return tag("div", tag("dl", *sizes, class_="facts"), items, class_="estimate")


def _fact(name: str, value: object, kind: str = "") -> Html:
    return tag("div", tag("dt", name, class_=kind), tag("dd", value))


def run_panel(run: Run | None, position: int, now: float) -> Html:
    """Title, stepper and numbers of a run, and what came of it."""
    if run is None:
        return notice("empty", "No run yet.", "Choose a model and a preset, then press Start.")
    parts = [tag("h2", "Run ", run_label(run)), _outcome(run, position)]
    if run.state != "queued":
        parts += [stepper(run, now), _numbers(run)]
    return tag("div", *parts, class_=f"run-panel {run.state}")


def _outcome(run: Run, position: int) -> Html | None:
    if run.state == "queued":
        place = "It is next." if position == 1 else f"It is number {position} in the queue."
        return notice("empty", f"Queued. {place}", "It starts by itself; this page may be closed.")
    if run.state == "running":
        if run.cancel_requested:
            return notice("busy", "Cancelling: a checkpoint is written first.")
        return None
    if run.state == "done":
        hint = "Open Chat to compare the answers, or Checks to count them."
        return notice("done", "Done.", "" if run.kind == "check" else hint)
    if run.state == "failed":
        hint = f"{run.error_hint} {NEXT_STEPS['failed']}".strip()
        return notice("failed", run.error_message, hint)
    reason = run.error_message or run.state.capitalize() + "."
    return notice("empty", reason, NEXT_STEPS[run.state])


def stepper(run: Run, now: float) -> Html:
    """The stages in order: done, current and to come, with the time each one took."""
    names = _stages(run) if run.kind == "quantize" else tuple(run.stages) or ("check",)
    return tag("ol", *(_step(run, name, now) for name in names), class_="stepper")


def _stages(run: Run) -> list[str]:
    """STAGES without the end-to-end trainings that the run does not have."""
    config = RunConfig.from_values(run.config)
    absent = {
        f"{name}_distill"
        for name, one in (("int4", config.int4), ("int2", config.int2))
        if not one.distill.tokens
    }
    return [name for name in STAGES if name not in absent]


def _step(run: Run, name: str, now: float) -> Html:
    times = run.stages.get(name)
    current = run.state == "running" and name == run.stage
    state = "current" if current else _other_state(run, name)
    mark = {"current": "◐", "done": "●", "stopped": "◍", "open": "○"}[state]
    taken = ""
    if times and (times["ended"] or current):
        taken = duration(stage_seconds(times, now))
    label = tag("span", stage_name(name), tag("small", taken))
    return tag("li", tag("i", mark), label, class_=state, aria_current="step" if current else None)


def stage_seconds(times: Mapping[str, Any], now: float) -> float:
    """What was worked in a stage of Run.stages, pauses not counted; in one that goes on, up to now."""
    if times["ended"] and "seconds" in times:
        return times["seconds"]
    return times.get("seconds", 0.0) + (times["ended"] or now) - times["started"]


def _other_state(run: Run, name: str) -> str:
    """Packing comes after each precision, so a stage ahead may have been done once already."""
    times = run.stages.get(name)
    ahead = run.state == "running" and {name, run.stage} <= set(STAGES)
    if not times or (ahead and STAGES.index(name) > STAGES.index(run.stage)):
        return "open"
    return "done" if run.state == "done" or times["ended"] else "stopped"


def _numbers(run: Run) -> Html:
    if run.state == "running":
        facts = [
            (
                "answers" if run.kind == "check" else "step",
                f"{run.stage_step:,} / {run.stage_total:,}" if run.stage_total else NO_VALUE,
            ),
            ("speed", f"{number(run.tokens_per_s)} tok/s" if run.tokens_per_s else NO_VALUE),
            ("left in this stage", duration(time_left(run))),
        ]
    else:
        facts = []
    facts += [
        ("time", duration(run.worked_s) if run.started_at else NO_VALUE),
        ("peak memory", peak_memory(run.peak_bytes, run.gpu_peak_bytes)),
    ]
    bar = tag(
        "progress", value=f"{stage_share(run):.3f}", max=1, aria_label="progress of the stage"
    )
    running = run.state == "running"
    waiting = "Loading the model." if run.kind == "check" else " "
    detail = tag("p", run.detail or waiting, class_="detail") if running else None
    rows = tag("dl", *(_fact(name, value) for name, value in facts), class_="facts")
    return join([bar if running else None, detail, rows])


def run_charts(run: Run | None, points: Sequence[Mapping[str, Any]]) -> Html:
    """Curves of the run: block errors of both precisions, distillation loss, held-out KL."""
    if run is None or run.kind != "quantize" or run.state == "queued" or not points:
        return Html()
    series: dict[str, dict[float, float]] = {}
    for point in points:
        series.setdefault(point["series"], {})[point["step"]] = point["value"]

    def curve(name: str, label: str, kind: str) -> Series:
        return Series(label, kind, list(series.get(name, {}).items()))

    def blocks(precision: str, title: str) -> Html:
        before, after = (
            {
                int(block): value
                for block, value in series.get(f"{precision}_block_{when}", {}).items()
            }
            for when in ("before", "after")
        )
        total = run.stages.get(precision, {}).get("total", 0)
        count = total if max([*before, *after, -1]) < total <= 200 else 0
        return block_chart(title, precision, before, after, blocks=count)

    held_out = [curve(f"held_out_kl_{kind}", kind.upper(), kind) for kind in ("int4", "int2")]
    has_held_out = any(one.points for one in held_out)
    waiting = "Starts with the end-to-end training."
    losses = [
        curve(f"{prefix}{name}", f"{name.replace('_', ' ')}, {kind.upper()}", kind)
        for kind, prefix in (("int4", "int4_"), ("int2", ""))
        for name in ("jsd", "next_token")
    ]
    norm = curve("grad_norm", "norm", "int2")
    charts = [
        blocks("int4", "INT4 block error"),
        blocks("int2", "INT2 block error"),
        line_chart("End-to-end loss (nats)", losses, x_name="step", empty=waiting),
        line_chart("Held-out KL to FP16 (nats)", held_out, x_name="step", empty=waiting)
        if has_held_out
        else line_chart("Gradient norm", [norm], x_name="step", empty=waiting),
    ]
    return tag("div", *charts, class_="charts")


def log_view(lines: Sequence[tuple[float, str]]) -> Html:
    """The last lines of the log with the local time of each."""
    if not lines:
        return notice("empty", "Nothing logged yet.")
    rows = [
        tag("span", tag("b", time.strftime("%H:%M:%S", time.localtime(at))), " ", line, "\n")
        for at, line in lines
    ]
    return tag("pre", *rows, class_="log", tabindex=0)


def history_table(runs: Sequence[Run], fidelity: Mapping[tuple[int, str], float]) -> Html:
    """All quantize runs with their actions. fidelity: (run id, precision) -> mean KL."""
    if not runs:
        return notice("empty", "Finished runs are listed here.")
    head = ("run", "state", "KL INT4", "KL INT2", "time", "")
    rows = [_history_row(run, fidelity) for run in runs]
    return table(head, rows, numeric=(2, 3, 4), class_="history")


def _history_row(run: Run, fidelity: Mapping[tuple[int, str], float]) -> list[object]:
    taken = run.worked_s if run.started_at and run.ended_at else None
    actions = ["open", "again"]
    if run.state in ("failed", "cancelled", "interrupted"):
        actions.insert(1, "resume")
    if run.state not in ("running", "queued"):
        actions.append("delete")
    buttons = [
        tag("button", action, class_="small", data_action=action, data_run=run.id)
        for action in actions
    ]
    return [
        join([tag("b", run_name(run)), tag("small", run.name) if run.name else None], " "),
        tag("span", STATE_MARKS[run.state], class_=f"state {run.state}"),
        fixed(fidelity.get((run.id, "INT4")), 3),
        fixed(fidelity.get((run.id, "INT2")), 3),
        duration(taken),
        tag("span", *buttons, class_="actions"),
    ]
