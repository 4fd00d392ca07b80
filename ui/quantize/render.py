"""From rows of the store to the HTML of the estimate, the curves, the log and the history: pure functions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ui.html import (
    Html,
    Series,
    block_chart,
    duration,
    fact,
    fixed,
    join,
    line_chart,
    notice,
    run_name,
    size,
    span,
    table,
    tag,
)
from upq.config import QUANTIZED, Precision, as_text
from upq.context import SeriesNames
from upq.quantize.estimate import Estimate
from upq.store import Run

#: Layers that a note names; a mixture of experts has a router in each block.
SHOWN_LAYERS = 3
STATE_MARKS = {
    "queued": "○ queued",
    "running": "◐ running",
    "done": "● done",
    "failed": "✗ failed",
    "cancelled": "\u2013 cancelled",
    "interrupted": "! interrupted",
}


def estimate_panel(estimate: Estimate, chosen: Mapping[str, Any] = MappingProxyType({})) -> Html:
    """Draw time, memory and sizes before Start, and what will not be quantized.

    chosen holds the settings that setting save_memory has chosen, by their dotted names.
    """
    on_gpu = [fact("GPU memory", size(estimate.gpu_bytes))] if estimate.gpu_bytes else []
    sizes = [
        fact("time", span(estimate.seconds_low, estimate.seconds_high)),
        fact("memory", size(estimate.memory_bytes)),
        *on_gpu,
        fact("FP16", size(estimate.fp16_bytes), "fp16"),
        fact("INT4", size(estimate.int4_bytes), "int4"),
        fact("INT2", size(estimate.int2_bytes), "int2"),
    ]
    notes = [*estimate.notes, *_skipped(estimate.skipped)]
    if chosen:
        words = ", ".join(f"{path}={as_text(value)}" for path, value in chosen.items())
        notes.insert(
            0, f"The model is large, so it takes {words}; save_memory=false keeps what is set."
        )
    items = tag("ul", *(tag("li", note) for note in notes)) if notes else None
    return tag("div", tag("dl", *sizes, class_="facts"), items, class_="estimate")


def _skipped(layers: Sequence[str]) -> list[str]:
    """What is not quantized, "layer: reason" each, as one note for each reason."""
    names: dict[str, list[str]] = {}
    for layer in layers:
        name, _, reason = layer.partition(": ")
        names.setdefault(reason, []).append(name)
    notes = []
    for reason, found in names.items():
        more = f" and {len(found) - SHOWN_LAYERS} more" if len(found) > SHOWN_LAYERS else ""
        notes.append(f"Not quantized: {', '.join(found[:SHOWN_LAYERS])}{more}: {reason}")
    return notes


def run_charts(run: Run | None, points: Sequence[Mapping[str, Any]]) -> Html:
    """Draw the curves of the run: block errors of both precisions, distillation loss, held-out KL."""
    if run is None or run.kind != "quantize" or run.state == "queued" or not points:
        return Html()
    series: dict[str, dict[float, float]] = {}
    for point in points:
        series.setdefault(point["series"], {})[point["step"]] = point["value"]

    names = {precision: SeriesNames(precision.key) for precision in QUANTIZED}

    def curve(name: str, label: str, precision: Precision) -> Series:
        return Series(label, precision.key, list(series.get(name, {}).items()))

    def blocks(precision: Precision) -> Html:
        before, after = (
            {int(block): value for block, value in series.get(name, {}).items()}
            for name in (names[precision].block_before, names[precision].block_after)
        )
        total = run.stages.get(precision.key, {}).get("total", 0)
        count = total if max([*before, *after, -1]) < total <= 200 else 0
        title = f"{precision.name} block error"
        return block_chart(title, precision.key, before, after, blocks=count)

    held_out = [
        curve(names[precision].held_out_kl, precision.name, precision) for precision in QUANTIZED
    ]
    has_held_out = any(kl_curve.points for kl_curve in held_out)
    waiting = "Starts with the end-to-end training."
    losses = [
        curve(
            names[precision].over_steps(loss),
            f"{loss.replace('_', ' ')}, {precision.name}",
            precision,
        )
        for precision in QUANTIZED
        for loss in ("jsd", "next_token")
    ]
    norm = curve(names[Precision.INT2].over_steps("grad_norm"), "norm", Precision.INT2)
    charts = [
        *map(blocks, QUANTIZED),
        line_chart("End-to-end loss (nats)", losses, x_name="step", empty=waiting),
        line_chart("Held-out KL to FP16 (nats)", held_out, x_name="step", empty=waiting)
        if has_held_out
        else line_chart("Gradient norm", [norm], x_name="step", empty=waiting),
    ]
    return tag("div", *charts, class_="charts")


def log_view(lines: Sequence[tuple[float, str]]) -> Html:
    """Draw the last lines of the log with the local time of each."""
    if not lines:
        return notice("empty", "Nothing logged yet.")
    rows = [
        tag("span", tag("b", time.strftime("%H:%M:%S", time.localtime(at))), " ", line, "\n")
        for at, line in lines
    ]
    return tag("pre", *rows, class_="log", tabindex=0)


def history_table(runs: Sequence[Run], fidelity: Mapping[tuple[int, str], float]) -> Html:
    """Draw all quantize runs with their actions. fidelity holds the mean KL of each (run id, precision)."""
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
