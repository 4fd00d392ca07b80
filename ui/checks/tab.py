"""Checks: put a suite to the precisions (instruction checks, IFEval, MMLU, WikiText-2) and see the scores.

A check is a run like any other: the worker executes it, this tab shows what the store holds.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Outputs
from ui.checks import form as checks_form
from ui.checks import render as render_checks
from ui.checks.form import NAMES, NEWEST, texts
from ui.checks.render import Filter
from ui.header import Header
from ui.html import parts, run_panel
from upq.config import CheckConfig
from upq.errors import UserError
from upq.evaluation import mmlu, scores
from upq.store import Run

FILTERS = ("all", "flipped", "failed")
PAGE = 25


@dataclass
class Choice(Outputs):
    """Which check is shown. `chosen` is apart from the selector for the reason that ui.header gives."""

    chosen: gr.State
    selector: gr.Dropdown


@dataclass
class Report(Outputs):
    """What a check run shows, filled by `_report`. seen holds what is shown, so that the same is not drawn twice."""

    summary: gr.HTML
    cancel: gr.Button
    resume: gr.Button
    totals: gr.HTML
    flips: gr.HTML
    types: gr.HTML
    prompts: gr.HTML
    more: gr.Button
    seen: gr.State


def build(app: App, header: Header) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320, elem_classes="card", elem_id="check-form"):
            gr.HTML(parts.panel_title("Run checks"))
            form, start, started = checks_form.lay_out()
        with gr.Column(scale=7, min_width=400, elem_classes="card", elem_id="check-report"):
            selector = gr.Dropdown(
                [("newest", NEWEST)], value=NEWEST, label="Results of", elem_id="check-selector"
            )
            choice = Choice(gr.State(NEWEST), selector)
            summary = gr.HTML(elem_id="check-summary")
            with gr.Row(elem_classes="buttons"):
                cancel = gr.Button("Cancel", visible=False, size="sm", min_width=90)
                resume = gr.Button("Resume", visible=False, size="sm", min_width=90)
            totals = gr.HTML(elem_id="check-totals")
            flips = gr.HTML(elem_id="check-flips")
    with gr.Column(elem_classes="card"), gr.Accordion("Per instruction type or subject", open=True):
        types = gr.HTML(elem_id="check-types")
    with gr.Column(elem_classes="card"):
        listed = gr.Radio(FILTERS, value="all", label="Prompts", elem_id="check-filter")
        prompts = gr.HTML(elem_id="check-prompts")
        more = gr.Button("Show more", visible=False, size="sm", min_width=110)
    report = Report(summary, cancel, resume, totals, flips, types, prompts, more, gr.State(("", 0)))
    selector.input(lambda value: value, selector, choice.chosen, **PRIVATE)
    checks_form.wire(app, header, form, start, started, choice.outputs)
    _wire_report(app, header, report, choice, listed, started)


def _wire_report(
    app: App,
    header: Header,
    report: Report,
    choice: Choice,
    listed: gr.Radio,
    started: gr.HTML,
) -> None:
    shown = gr.State(PAGE)

    def show(run_id: int | None, check_id: int, kind: Filter, limit: int, seen: Any) -> Any:
        return _report(app, run_id, check_id, kind, limit, seen)

    def choices(run_id: int | None, check_id: int) -> Any:
        options = [(_check_name(run), run.id) for run in _check_runs(app, run_id)]
        keep = check_id in [value for _, value in options]
        value = check_id if keep else NEWEST
        offered = [("newest", NEWEST), *options]
        return Choice.fill(chosen=value, selector=gr.update(choices=offered, value=value))

    def cancel(run_id: int | None, check_id: int) -> Any:
        run = _chosen(app, run_id, check_id)
        return parts.notice("empty", app.store.request_cancel(run.id)) if run else gr.skip()

    def resume(run_id: int | None, check_id: int) -> Any:
        run = _chosen(app, run_id, check_id)
        return parts.notice("empty", app.store.resume(run.id)) if run else gr.skip()

    picked = [header.chosen, choice.chosen]
    changes = [
        header.checks.change,
        header.chosen.change,
        choice.chosen.change,
        listed.change,
        shown.change,
    ]
    inputs = [*picked, listed, shown, report.seen]
    gr.on(changes, show, inputs, report.outputs, trigger_mode="always_last", **PRIVATE)
    gr.on([header.catalog.change, header.chosen.change], choices, picked, choice.outputs, **PRIVATE)
    report.cancel.click(cancel, picked, started, **PRIVATE)
    report.resume.click(resume, picked, started, **PRIVATE)
    report.more.click(lambda limit: limit + PAGE, shown, shown, **PRIVATE)


def _check_runs(app: App, run_id: int | None) -> list[Run]:
    parent = run_id or None
    return [run for run in app.store.runs(kind="check") if run.parent_id == parent]


def _chosen(app: App, run_id: int | None, check_id: int) -> Run | None:
    runs = _check_runs(app, run_id)
    return next((run for run in runs if check_id in (NEWEST, run.id)), None)


def _check_name(run: Run) -> str:
    config = CheckConfig.from_values(run.config)
    file = f" {Path(config.path).name}" if config.path else ""
    amount = f"first {config.limit:,}" if config.limit else "whole"
    if config.suite == "mmlu":
        amount = f"{config.per_subject} per subject" if config.per_subject else "whole"
    precisions = " ".join(config.precisions)
    return f"#{run.id} {NAMES[config.suite]}{file} · {amount} · {precisions} · {run.state}"


def _report(
    app: App, run_id: int | None, check_id: int, choice: Filter, limit: int, seen: Any
) -> list[Any]:
    run = _chosen(app, run_id, check_id)
    position = app.store.queue_position(run.id) if run else 0
    now_seen = [run.id if run else 0, run.revision if run else 0, position, choice, limit]
    if now_seen == seen:
        return Report.fill()
    report = app.shared.get(
        ("checks", *now_seen), lambda: _drawn(app, run, position, choice, limit)
    )
    return Report.fill(**report, seen=now_seen)


def _drawn(app: App, run: Run | None, position: int, choice: Filter, limit: int) -> dict[str, Any]:
    """Values for the components of a Report, alike on all pages that show this check."""
    suite = CheckConfig.from_values(run.config).suite if run else "builtin"
    results = scores.outcomes(suite, app.store.check_results(run.id)) if run else {}
    listed = {} if suite == "wikitext2" else results
    keys = render_checks.chosen_keys(listed, choice)
    state = run.state if run else ""
    prompts = _prompts(run) if run else {}
    return {
        "summary": run_panel.run_panel(run, position, time.time()) if run else "",
        "cancel": gr.update(visible=state in ("queued", "running", "interrupted")),
        "resume": gr.update(visible=state in ("failed", "cancelled", "interrupted")),
        "totals": render_checks.scores_table(suite, results) if results or not run else "",
        "flips": render_checks.flip_line(suite, results),
        "types": render_checks.bars(suite, results),
        "prompts": render_checks.prompt_list(listed, prompts, choice, limit),
        "more": gr.update(visible=len(keys) > limit),
    }


def _prompts(run: Run) -> dict[Hashable, str | mmlu.Question]:
    config = CheckConfig.from_values(run.config)
    try:
        return texts(config.suite, config.path)
    except UserError:
        return {}  # the suite cannot be read any more
