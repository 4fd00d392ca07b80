"""Quantize: the form of a new run, the live panel of a run, and the history.

A run never lives in an event of the page: Start inserts a row, and everything shown is read back from
the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App
from ui.drafts import Draft
from ui.header import Header, clicked_run
from ui.html import parts
from ui.quantize import advanced, history, panel
from ui.quantize import form as run_form
from ui.quantize.lookups import Lookups
from ui.quantize.panel import NEWEST, Choice
from upq.errors import UserError


@dataclass
class Desk:
    """The form with what stands below it: what it changes of its preset, what to expect, Start and what came of it."""

    form: run_form.RunForm
    changes: gr.HTML
    expected: gr.HTML
    start: gr.Button
    started: gr.HTML


def build(app: App, header: Header, tabs: gr.Tabs) -> Draft:
    """Lay out the tab and wire it; return what the browser remembers of it. Must be called inside its gr.Tab."""
    choice = Choice(gr.State(NEWEST), gr.State(NEWEST))
    with gr.Row():
        with gr.Column(scale=4, min_width=340, elem_classes="card", elem_id="new-run"):
            desk = _lay_out_desk(app)
        with gr.Column(scale=7, min_width=400):
            with gr.Column(elem_classes="card", elem_id="live"):
                live = panel.lay_out(desk.started)
            with gr.Column(elem_classes="card"):
                past = history.lay_out()
    restored = _wire_desk(app, header, desk, choice)
    panel.wire(app, header, tabs, live, choice, past.message)
    history.wire(app, header, desk.form, past, choice)

    def open_live(event: gr.EventData) -> Any:
        return _open_live(app, event)

    header.status.click(open_live, None, [tabs, choice.shown], **PRIVATE)
    return run_form.draft_of(desk.form, restored)


def _lay_out_desk(app: App) -> Desk:
    gr.HTML(parts.panel_title("New run"))
    form = run_form.build(app.offer)
    changes = gr.HTML(
        js_on_load=advanced.SCRIPT.read_text(encoding="utf-8"), elem_id="settings-changes"
    )
    expected = gr.HTML(elem_id="estimate")
    with gr.Column(elem_id="start-bar"):
        start = gr.Button("Start", variant="primary", elem_id="start")
        started = gr.HTML(elem_id="started")
    return Desk(form, changes, expected, start, started)


def _wire_desk(app: App, header: Header, desk: Desk, choice: Choice) -> gr.State:
    """Wire the form; return a state whose change tells that the form was filled."""
    form, lookups, filled = desk.form, gr.State(Lookups()), gr.State(0.0)

    def estimate(numbers: Lookups, *values: Any) -> Iterator[Any]:
        number, changes = numbers.begin(), run_form.changes_html(form, values)
        if not run_form.is_known(app, values):
            yield changes, run_form.looking(form, values)
        found = run_form.estimate_html(app, form, values)
        yield (changes, found) if numbers.is_newest(number) else (gr.skip(), gr.skip())

    def queue_run(*values: Any) -> Iterator[Any]:
        yield run_form.looking(form, values), gr.skip(), gr.skip()
        try:
            run_id = run_form.start(app, form, values)
        except UserError as error:
            yield parts.notice("failed", error.message, error.hint), gr.skip(), NEWEST
            return
        yield gr.skip(), run_id, run_id  # the panel tells what becomes of it

    def take_preset(name: str, kind: str, text: str, method: str) -> Any:
        return run_form.preset_values(form, name, kind, text, method)

    def reset(event: gr.EventData, *values: Any) -> Any:
        return run_form.reset(form, _clicked_setting(event), values)

    plain = [form.model_kind, form.method, form.data_source]
    typed = [form.model_text, *form.fields.values()]
    changed = [component.change for component in plain]
    changed += [getattr(component, _settled(component)) for component in typed]
    changed.append(header.catalogs["quantize"].change)  # a run may have ended and taught us speeds
    changed.append(filled.change)
    asked: dict[str, Any] = {
        "fn": estimate,
        "inputs": [lookups, *form.inputs],
        "outputs": [desk.changes, desk.expected],
        **PRIVATE,
    }
    gr.on(changed, **asked, trigger_mode="multiple")
    outputs = [desk.started, choice.shown, choice.started]
    desk.start.click(queue_run, form.inputs, outputs, **PRIVATE)
    chosen = [form.preset, form.model_kind, form.model_text, form.method]
    gr.on(
        [form.preset.input, form.method.input], take_preset, chosen, form.outputs, **PRIVATE
    ).then(**asked)
    desk.changes.click(reset, form.inputs, form.outputs, **PRIVATE).then(**asked)
    return filled


def _settled(component: Any) -> str:
    """Name the event that tells that a person is done with a field: text is judged when it is left."""
    return "blur" if isinstance(component, gr.Textbox | gr.Number) else "input"


def _clicked_setting(event: gr.EventData) -> str:
    """Return the path of a setting that is to be put back, render_settings.ALL, or "" for anything else."""
    data: Any = event._data
    path = data.get("setting") if isinstance(data, dict) else None
    return path if isinstance(path, str) else ""


def _open_live(app: App, event: gr.EventData) -> Any:
    """Follow the header's link to the live run: return the tab to open and the run to show."""
    _, run_id = clicked_run(event)
    try:
        run = app.store.run(run_id)
    except UserError:
        return gr.skip(), gr.skip()
    if run.kind == "check":
        return gr.Tabs(selected="checks"), gr.skip()
    return gr.Tabs(selected="quantize"), run.id
