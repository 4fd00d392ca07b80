"""Quantize: the form of a new run, the live panel of a run, and the history.

A run never lives in an event of the page: Start inserts a row, and everything shown is read back from
the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, Outputs
from ui.header import CLICKS, Header, clicked_run
from ui.html import parts, run_panel
from ui.quantize import form as run_form
from ui.quantize import render
from upq.errors import UserError
from upq.store import Run

LOG_LINES = 200
NEWEST = 0


@dataclass
class Panel(Outputs):
    """The live panel, filled by `_panel`. seen holds what is shown, so that the same is not drawn twice."""

    summary: gr.HTML
    charts: gr.HTML
    log: gr.HTML
    cancel: gr.Button
    resume: gr.Button
    chat: gr.Button
    seen: gr.State


def build(app: App, header: Header, tabs: gr.Tabs) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    shown = gr.State(NEWEST)
    with gr.Row():
        with gr.Column(scale=4, min_width=340, elem_classes="card", elem_id="new-run"):
            gr.HTML(parts.panel_title("New run"))
            form = run_form.build()
            expected = gr.HTML(elem_id="estimate")
            start = gr.Button("Start", variant="primary", elem_id="start")
            started = gr.HTML(elem_id="started")
        with gr.Column(scale=7, min_width=400):
            with gr.Column(elem_classes="card", elem_id="live"):
                panel = _lay_out_panel()
            with gr.Column(elem_classes="card"):
                gr.HTML(parts.panel_title("History"))
                message = gr.HTML(elem_id="history-message")
                history = gr.HTML(js_on_load=CLICKS, elem_id="history")
    _wire_form(app, header, form, expected, start, started, shown)
    _wire_panel(app, header, tabs, panel, shown, message)
    _wire_history(app, header, form, history, message, shown)

    def open_live(event: gr.EventData) -> Any:
        return _open_live(app, event)

    header.status.click(open_live, None, [tabs, shown], **PRIVATE)


def _lay_out_panel() -> Panel:
    summary = gr.HTML(elem_id="run-summary")
    with gr.Row(elem_classes="buttons"):
        cancel = gr.Button("Cancel", visible=False, size="sm", min_width=90, elem_id="cancel")
        resume = gr.Button("Resume", visible=False, size="sm", min_width=90, elem_id="resume")
        chat = gr.Button("Chat with it", visible=False, size="sm", min_width=90, elem_id="to-chat")
    charts = gr.HTML(elem_id="run-charts")
    with gr.Accordion(f"Log, last {LOG_LINES} lines", open=False, elem_id="log-box"):
        log = gr.HTML(autoscroll=True)
    return Panel(summary, charts, log, cancel, resume, chat, gr.State(("", 0)))


def _wire_form(
    app: App,
    header: Header,
    form: run_form.RunForm,
    expected: gr.HTML,
    start: gr.Button,
    started: gr.HTML,
    shown: gr.State,
) -> None:
    def estimate(*values: Any) -> Any:
        return run_form.estimate_html(app, form, values)

    def queue_run(*values: Any) -> Any:
        try:
            run_id = run_form.start(app, form, values)
        except UserError as error:
            return parts.notice("failed", error.message, error.hint), gr.skip()
        return parts.notice("done", run_form.start_words(app, run_id)), run_id

    def take_preset(name: str, kind: str, text: str, method: str) -> Any:
        return run_form.preset_values(form, name, kind, text, method)

    plain = [form.model_kind, form.method, form.data_source]
    typed = [form.model_text, *form.fields.values()]
    changes = [component.change for component in plain]
    changes += [getattr(component, _settled(component)) for component in typed]
    changes.append(header.catalog.change)  # a page was opened, or a run ended and taught us speeds
    gr.on(changes, estimate, form.inputs, expected, trigger_mode="always_last", **PRIVATE)
    start.click(queue_run, form.inputs, [started, shown], **PRIVATE)
    chosen = [form.preset, form.model_kind, form.model_text, form.method]
    gr.on(
        [form.preset.input, form.method.input], take_preset, chosen, form.outputs, **PRIVATE
    ).then(estimate, form.inputs, expected, **PRIVATE)


def _settled(component: Any) -> str:
    """Name the event that tells that a person is done with a field: text is judged when it is left."""
    return "blur" if isinstance(component, gr.Textbox | gr.Number) else "input"


def _wire_panel(
    app: App, header: Header, tabs: gr.Tabs, panel: Panel, shown: gr.State, message: gr.HTML
) -> None:
    def show(run_id: int, seen: tuple[str, int]) -> Any:
        return _panel(app, run_id, seen)

    def acting(action: Callable[[int], str]) -> Callable[[int], Any]:
        def act(run_id: int) -> Any:
            run = _chosen(app, run_id)
            return parts.notice("empty", action(run.id)) if run else gr.skip()

        return act

    def open_chat(run_id: int) -> Any:
        run = _chosen(app, run_id)
        chosen = run.id if run else gr.skip()
        return gr.Tabs(selected="chat"), chosen, chosen

    gr.on(
        [header.revision.change, shown.change],
        show,
        [shown, panel.seen],
        panel.outputs,
        trigger_mode="always_last",
        **PRIVATE,
    )
    panel.cancel.click(acting(app.store.request_cancel), shown, message, **PRIVATE)
    panel.resume.click(acting(app.store.resume), shown, message, **PRIVATE)
    panel.chat.click(open_chat, shown, [tabs, header.chosen, header.selector], **IN_ORDER)


def _chosen(app: App, run_id: int) -> Run | None:
    """Return the run to show: the opened one, else the live one, else the newest quantization."""
    if run_id != NEWEST:
        try:
            return app.store.run(run_id)
        except UserError:
            run_id = NEWEST  # deleted meanwhile
    live = app.store.live_run()
    if live and live.kind == "quantize":
        return live
    return next(iter(app.store.runs(limit=1, kind="quantize")), None)


def _panel(app: App, run_id: int, seen: tuple[str, int]) -> list[Any]:
    run = _chosen(app, run_id)
    position = app.store.queue_position(run.id) if run else 0
    now_seen = (f"{run.id} {position}", run.revision) if run else (f"none {app.unpack_state}", 0)
    if now_seen == tuple(seen):
        return Panel.fill()
    panel = app.shared.get(("panel", *now_seen), lambda: _drawn(app, run, position))
    return Panel.fill(**panel, seen=now_seen)


def _drawn(app: App, run: Run | None, position: int) -> dict[str, Any]:
    """Values for the components of a Panel, alike on all pages that show this run."""
    state = run.state if run else ""
    stoppable = bool(run) and state in ("queued", "running", "interrupted")
    has_artifacts = run is not None and bool(app.store.artifacts(run.id))
    return {
        "summary": (None if run else parts.unpacking(app.unpack_state))
        or run_panel.run_panel(run, position, time.time()),
        "charts": render.run_charts(run, app.store.metrics(run.id) if run else []),
        "log": render.log_view(app.store.log_lines(run.id, LOG_LINES) if run else []),
        "cancel": gr.update(visible=stoppable),
        "resume": gr.update(visible=state in ("failed", "cancelled", "interrupted")),
        "chat": gr.update(visible=has_artifacts),
    }


def _wire_history(
    app: App,
    header: Header,
    form: run_form.RunForm,
    history: gr.HTML,
    message: gr.HTML,
    shown: gr.State,
) -> None:
    again = gr.State((0, 0.0))

    def act(event: gr.EventData) -> Any:
        action, run_id = clicked_run(event)
        try:
            return _act(app, action, run_id)
        except UserError as error:
            return parts.notice("failed", error.message, error.hint), gr.skip(), gr.skip()

    def refill(request: tuple[int, float]) -> Any:
        return run_form.values_of(form, run_form.config_of_run(app.store.run(request[0]).config))

    history.click(act, None, [message, shown, again], **PRIVATE)
    again.change(refill, again, form.outputs, **PRIVATE)
    header.catalog.change(lambda: _history(app), None, history, **PRIVATE)


def _act(app: App, action: str, run_id: int) -> tuple[Any, Any, Any]:
    """Carry out a button of the history; return a message, the run to show and the run to start from."""
    run = app.store.run(run_id)
    if action == "resume":
        return parts.notice("done", app.store.resume(run.id)), run.id, gr.skip()
    if action == "delete":
        app.store.delete(run.id)
        return parts.notice("done", f"Run #{run.id} is deleted."), NEWEST, gr.skip()
    if action == "again":
        words = f"The form holds the settings of run #{run.id}."
        return parts.notice("done", words, "Press Start."), gr.skip(), (run.id, time.time())
    return "", run.id, gr.skip()


def _history(app: App) -> Any:
    runs = app.store.runs(kind="quantize")
    fidelity = {
        (row["run_id"], row["label"]): row["kl"]
        for row in app.store.measurements()
        if row["label"] == row["precision"]
    }
    return render.history_table(runs, fidelity)


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
