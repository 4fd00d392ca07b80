"""Checks: put a suite to the precisions (instruction checks, IFEval, MMLU, WikiText-2) and see the scores.

A check is a run like any other: the worker executes it, this tab shows what the store holds.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Outputs
from ui.checks import export, render_origin
from ui.checks import form as checks_form
from ui.checks import render as render_checks
from ui.checks.choices import Filter, Results, chosen_filter, filters
from ui.checks.form import NAMES, NEWEST, texts
from ui.drafts import Draft
from ui.header import Header
from ui.html import Html, join, parts, run_panel
from upq.config import CheckConfig
from upq.errors import UserError
from upq.evaluation import mmlu, scores
from upq.jobs import shipped_checks
from upq.store import Run

#: The filter that a check opens with: what quantization changed.
FIRST_FILTER: Filter = "flipped"
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
    origin: gr.HTML
    csv: gr.DownloadButton
    json: gr.DownloadButton
    types_card: gr.Column
    types: gr.HTML
    list_card: gr.Column
    listed: gr.Radio
    prompts: gr.HTML
    more: gr.Button
    seen: gr.State


def build(app: App, header: Header) -> Draft:
    """Lay out the tab and wire it; return what the browser remembers of it. Must be called inside its gr.Tab."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320, elem_classes="card", elem_id="check-form"):
            gr.HTML(parts.panel_title("Run checks"))
            form, start, started = checks_form.lay_out(app.offer)
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
            origin = gr.HTML(elem_id="check-origin")
            with gr.Row(elem_classes="buttons"):
                csv = gr.DownloadButton("CSV", visible=False, size="sm", elem_id="check-csv")
                json = gr.DownloadButton("JSON", visible=False, size="sm", elem_id="check-json")
    with gr.Column(elem_classes="card", visible=False) as list_card:
        listed = gr.Radio([], label="Prompts", elem_id="check-filter")
        prompts = gr.HTML(elem_id="check-prompts")
        more = gr.Button("Show more", visible=False, size="sm", min_width=110)
    with (
        gr.Column(elem_classes="card", visible=False) as types_card,
        gr.Accordion("Per instruction type or subject", open=True),
    ):
        types = gr.HTML(elem_id="check-types")
    report = Report(
        summary=summary,
        cancel=cancel,
        resume=resume,
        totals=totals,
        flips=flips,
        origin=origin,
        csv=csv,
        json=json,
        types_card=types_card,
        types=types,
        list_card=list_card,
        listed=listed,
        prompts=prompts,
        more=more,
        seen=gr.State(("", 0)),
    )
    selector.input(lambda value: value, selector, choice.chosen, **PRIVATE)
    checks_form.wire(app, header, form, start, started, choice.outputs)
    _wire_report(app, header, report, choice, started)
    return form.draft()


def _wire_report(
    app: App,
    header: Header,
    report: Report,
    choice: Choice,
    started: gr.HTML,
) -> None:
    shown, kind = gr.State(PAGE), gr.State(FIRST_FILTER)

    def show(tab: str, *asked: Any) -> Any:
        """Nothing for those who look at another tab: the answers of a check are long."""
        return _report(app, *asked) if tab == "checks" else Report.fill()

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
        header.tab.change,
        header.checks.change,
        header.chosen.change,
        choice.chosen.change,
        kind.change,
        shown.change,
    ]
    inputs = [header.tab, *picked, kind, shown, report.seen]
    gr.on(changes, show, inputs, report.outputs, trigger_mode="always_last", **PRIVATE)
    gr.on(
        [header.catalogs["checks"].change, header.chosen.change],
        choices,
        picked,
        choice.outputs,
        **PRIVATE,
    )
    report.cancel.click(cancel, picked, started, **PRIVATE)
    report.resume.click(resume, picked, started, **PRIVATE)
    report.listed.input(lambda value: (value, PAGE), report.listed, [kind, shown], **PRIVATE)
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
    facts = [f"#{run.id} {NAMES[config.suite]}{file}", amount, precisions, run.state, run.name]
    return " · ".join(filter(None, facts))


def _report(
    app: App, run_id: int | None, check_id: int, kind: Filter, limit: int, seen: Any
) -> list[Any]:
    run = _chosen(app, run_id, check_id)
    position = app.store.queue_position(run.id) if run else 0
    now_seen = [run.id if run else 0, run.revision if run else 0, position, kind, limit]
    if now_seen == seen:
        return Report.fill()
    report = app.shared.get(("checks", *now_seen), lambda: _drawn(app, run, position, kind, limit))
    return Report.fill(**report, seen=now_seen)


def _drawn(app: App, run: Run | None, position: int, kind: Filter, limit: int) -> dict[str, Any]:
    """Values for the components of a Report, alike on all pages that show this check."""
    suite = CheckConfig.from_values(run.config).suite if run else "builtin"
    results = scores.outcomes(suite, app.store.check_results(run.id)) if run else {}
    state = run.state if run else ""
    asked = _asked(run, results) if run else {}
    return {
        "summary": run_panel.run_panel(run, position, time.time()) if run else "",
        "cancel": gr.update(visible=state in ("queued", "running", "interrupted")),
        "resume": gr.update(visible=state in ("failed", "cancelled", "interrupted")),
        "totals": _totals(run, suite, results),
        "flips": render_checks.flip_line(suite, results),
        "origin": render_origin.origin(run) if run and results else "",
        "types_card": gr.update(visible=bool(results)),
        "types": render_checks.bars(suite, results),
        **_listed({} if suite == "wikitext2" else results, asked, kind, limit),
        **_files(app, run, suite, results, asked),
    }


def _totals(run: Run | None, suite: str, results: Results) -> Html:
    if run is None:
        return render_checks.scores_table(suite, {})
    return join(
        [
            render_checks.unfinished(run, results),
            render_checks.scores_table(suite, results) if results else None,
        ]
    )


def _listed(
    results: Results, asked: Mapping[Hashable, str | mmlu.Question], kind: Filter, limit: int
) -> dict[str, Any]:
    """Values for the list of prompts: the filters with their counts, and the items of the chosen one."""
    found = filters(results)
    chosen = chosen_filter(found, kind)
    keys = found[chosen]
    choices = [(f"{name} {len(items)}", name) for name, items in found.items()]
    return {
        "list_card": gr.update(visible=bool(results)),
        "listed": gr.update(choices=choices, value=chosen),
        "prompts": render_checks.prompt_list(results, asked, chosen, keys, limit),
        "more": gr.update(visible=len(keys) > limit),
    }


def _files(
    app: App,
    run: Run | None,
    suite: str,
    results: Results,
    asked: Mapping[Hashable, str | mmlu.Question],
) -> dict[str, Any]:
    """Values for the two downloads. A check that goes on offers none yet."""
    if run is None or not results or run.state in ("queued", "running"):
        return {name: gr.update(visible=False) for name in ("csv", "json")}
    texts_of = {
        "csv": export.csv_of(results, asked),
        "json": export.json_of(suite, run.config, results),
    }
    found = {}
    for name, text in texts_of.items():
        path = app.own_folder() / f"upq-check-{run.id}.{name}"
        path.write_text(text, encoding="utf-8")
        found[name] = gr.update(value=str(path), visible=True)
    return found


def _asked(run: Run, results: Results) -> Mapping[Hashable, str | mmlu.Question]:
    """Return what was asked, from what ships where that has it all, so that nothing asks the hub for it."""
    config = CheckConfig.from_values(run.config)
    shipped = shipped_checks.asked(config.suite)
    items = {scores.item(one)[0] for own in results.values() for one in own} if shipped else set()
    if config.path is None and items and items <= shipped.keys():
        return shipped
    try:
        return texts(config.suite, config.path)
    except UserError:
        return {}  # the suite cannot be read any more
