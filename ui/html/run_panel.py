"""The panel of one run: its title, its stages, its numbers and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ui.html.clock import clock
from ui.html.markup import Html, join, tag
from ui.html.parts import fact, notice, run_label, stage_share, time_left
from ui.html.words import in_order, number, peak_memory, stage_name
from upq.config import QUANTIZED, RunConfig
from upq.context import STAGES, SeriesNames
from upq.store import Run
from upq.units import NO_VALUE, duration


def run_panel(run: Run | None, position: int, now: float) -> Html:
    """Draw title, note, stepper and numbers of a run, and what came of it."""
    if run is None:
        return notice("empty", "No run yet.", "Choose a model and a preset, then press Start.")
    star = tag("span", "★ ", title="starred", aria_label="starred") if run.starred else None
    note = tag("p", run.note, class_="run-note", dir="auto") if run.note else None
    parts = [tag("h2", star, "Run ", run_label(run)), note, _outcome(run, position)]
    if run.state != "queued" or run.stages:
        parts += [stepper(run, now), _numbers(run, now)]
    return tag("div", *parts, class_=f"run-panel {run.state}")


def _outcome(run: Run, position: int) -> Html | None:
    if run.state == "running" and run.cancel_requested:
        return notice("busy", "Cancelling: it stops at its next safe point.", _next_step(run))
    if run.aside_for is not None and run.state in ("running", "queued", "interrupted"):
        hint = "What it has done is kept, and the time that it waits is not counted."
        words = "Steps" if run.state == "running" else "Stepped"
        return notice(
            "busy", f"{words} aside for check #{run.aside_for}, goes on afterwards.", hint
        )
    if run.state == "running":
        return None
    if run.state == "queued":
        place = "It is next." if position == 1 else f"It is number {position} in the queue."
        return notice("empty", f"Queued. {place}", "It starts by itself; this page may be closed.")
    if run.state == "done":
        hint = "Open Chat to compare the answers, or Checks to count them."
        return notice("done", "Done.", "" if run.kind == "check" else hint)
    if run.state == "failed":
        hint = f"{run.error_hint} {_next_step(run)}".strip()
        return notice("failed", run.error_message, hint)
    reason = run.error_message or run.state.capitalize() + "."
    return notice("empty", reason, _next_step(run))


def _next_step(run: Run) -> str:
    """Say what Resume does for a run that ended, or is being cancelled, by what is kept of it."""
    if run.state == "interrupted":
        return "It continues by itself as soon as a worker is free."
    if run.started_at is None:
        return "It had not started. Resume puts it into the queue again."
    if run.kind == "check":
        if not run.has_checkpoint:
            return "Nothing of it was finished. Resume starts it over."
        return "What it finished is kept; Resume goes on with the rest."
    if not run.has_checkpoint:
        return "It has come to no checkpoint; Resume starts it over."
    again = "; again starts over with the same settings" if run.state == "failed" else ""
    return f"Resume goes on from the last checkpoint{again}."


def stepper(run: Run, now: float) -> Html:
    """Draw the stages in order: done, current and to come, with the time each one took."""
    names = _stages(run) if run.kind == "quantize" else in_order(run.stages) or ["check"]
    return tag("ol", *(_step(run, name, now) for name in names), class_="stepper")


def _stages(run: Run) -> list[str]:
    """Return STAGES without the end-to-end trainings that the run does not have."""
    config = RunConfig.from_values(run.config)
    absent = {
        SeriesNames(precision.key).distill_stage
        for precision in QUANTIZED
        if not config.of(precision).distill.tokens
    }
    return [name for name in STAGES if name not in absent]


def _step(run: Run, name: str, now: float) -> Html:
    times = run.stages.get(name)
    current = run.state == "running" and name == run.stage
    state = "current" if current else _other_state(run, name)
    mark = {"current": "◐", "done": "●", "stopped": "◍", "open": "○"}[state]
    taken: object = ""
    if times and current:
        taken = clock(stage_seconds(times, now), "up")
    elif times and times["ended"]:
        taken = duration(stage_seconds(times, now))
    label = tag("span", stage_name(name), tag("small", taken))
    return tag("li", tag("i", mark), label, class_=state, aria_current="step" if current else None)


def stage_seconds(times: Mapping[str, Any], now: float) -> float:
    """Return the seconds worked in a stage of Run.stages, without pauses; in one that goes on, up to now."""
    if times["ended"] and "seconds" in times:
        return times["seconds"]
    return times.get("seconds", 0.0) + (times["ended"] or now) - times["started"]


def _time(run: Run, now: float) -> Html | str:
    """Draw the time worked on a run, of one at work counted on from the worker's last sign of life."""
    if run.started_at is None:
        return NO_VALUE
    if run.state != "running" or run.lease_until is None or run.lease_s is None:
        return duration(run.worked_s)
    silent_s = min(run.lease_s, max(0.0, now - (run.lease_until - run.lease_s)))
    return clock(run.worked_s + silent_s, "up")


def _other_state(run: Run, name: str) -> str:
    """Return the state of a stage that is not the current one.

    Packing comes after each precision, so a stage ahead may have been done once already.
    """
    times = run.stages.get(name)
    ahead = run.state == "running" and {name, run.stage} <= set(STAGES)
    if not times or (ahead and STAGES.index(name) > STAGES.index(run.stage)):
        return "open"
    if run.state == "done":
        return "done"
    return "stopped" if name == run.stage or not times["ended"] else "done"


def _numbers(run: Run, now: float) -> Html:
    if run.state == "running":
        facts = [
            (
                "answers" if run.kind == "check" else "step",
                f"{run.stage_step:,} / {run.stage_total:,}" if run.stage_total else NO_VALUE,
            ),
            ("speed", f"{number(run.tokens_per_s)} tok/s" if run.tokens_per_s else NO_VALUE),
            ("left in this stage", clock(time_left(run), "down")),
        ]
    else:
        facts = []
    facts += [
        ("time", _time(run, now)),
        ("peak memory", peak_memory(run.peak_bytes, run.gpu_peak_bytes)),
    ]
    bar = tag(
        "progress", value=f"{stage_share(run):.3f}", max=1, aria_label="progress of the stage"
    )
    running = run.state == "running"
    waiting = "Loading the model." if run.kind == "check" else " "
    detail = tag("p", run.detail or waiting, class_="detail") if running else None
    rows = tag("dl", *(fact(name, value) for name, value in facts), class_="facts")
    return join([bar if running else None, detail, rows])
