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
    fact,
    line_chart,
    notice,
    size,
    span,
    tag,
)
from upq.config import QUANTIZED, Precision, as_text
from upq.context import SeriesNames
from upq.quantize.estimate import Estimate
from upq.store import Run

#: Layers that a note names; a mixture of experts has a router in each block.
SHOWN_LAYERS = 3
#: Where results name sizes they are those of what is stored.
STORED_NOTE = "What is stored holds config and tokenizer too: a few MB more than the weights."
#: From so many seconds on, four days, an estimate advises against the run.
TOO_LONG_S = 4 * 86_400
TOO_LONG_NOTE = (
    "That is more than a machine should be asked: take a smaller preset or model, or a GPU."
)


def estimate_panel(estimate: Estimate, chosen: Mapping[str, Any] = MappingProxyType({})) -> Html:
    """Draw time, memory and sizes before Start, and what will not be quantized.

    chosen holds the settings that setting save_memory has chosen, by their dotted names.
    """
    on_gpu = [fact("GPU memory", size(estimate.gpu_bytes))] if estimate.gpu_bytes else []
    sizes = [
        fact("time", span(estimate.seconds_low, estimate.seconds_high)),
        fact("memory", size(estimate.memory_bytes)),
        *on_gpu,
        fact("FP16 weights", size(estimate.fp16_bytes), "fp16"),
        fact("INT4 weights", size(estimate.int4_bytes), "int4"),
        fact("INT2 weights", size(estimate.int2_bytes), "int2"),
    ]
    notes = [*estimate.notes, *_skipped(estimate.skipped), STORED_NOTE]
    if estimate.seconds_high > TOO_LONG_S:
        notes.insert(0, TOO_LONG_NOTE)
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
    """Draw the curves of the run: block errors of both precisions, distillation loss, held-out KL.

    Of a run that is done those without a point are left out: nothing will fill them.
    """
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
    last = (
        line_chart(
            "KL to FP16 on up to 8 held-out answers (nats)", held_out, x_name="step", empty=waiting
        )
        if has_held_out
        else line_chart("Gradient norm", [norm], x_name="step", empty=waiting)
    )
    charts = [
        *((blocks(precision), _has_blocks(series, names[precision])) for precision in QUANTIZED),
        (
            line_chart("End-to-end loss (nats)", losses, x_name="step", empty=waiting),
            any(loss.points for loss in losses),
        ),
        (last, has_held_out or bool(norm.points)),
    ]
    shown = [chart for chart, has_points in charts if has_points or run.state != "done"]
    return tag("div", *shown, class_="charts")


def _has_blocks(series: Mapping[str, object], names: SeriesNames) -> bool:
    return names.block_before in series or names.block_after in series


def log_view(lines: Sequence[tuple[float, str]]) -> Html:
    """Draw the last lines of the log with the local time of each."""
    if not lines:
        return notice("empty", "Nothing logged yet.")
    rows = [
        tag("span", tag("b", time.strftime("%H:%M:%S", time.localtime(at))), " ", line, "\n")
        for at, line in lines
    ]
    return tag("pre", *rows, class_="log", tabindex=0)
