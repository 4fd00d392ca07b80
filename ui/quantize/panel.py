"""The live panel of one run: its progress, curves and log, and what people write on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, Outputs
from ui.header import Header
from ui.html import parts, run_panel
from ui.quantize import render, render_history
from upq.errors import UserError
from upq.store import Labels, Run

LOG_LINES = 200
NEWEST = 0
#: What a page has seen before anything was drawn: the run, its labels, the run that was started here.
NOTHING_SEEN = ((), (), ())


@dataclass
class Panel(Outputs):
    """The live panel, filled by `show`. seen holds what is shown, so that the same is not drawn twice.

    labelled is the run that is drawn, whose labels stand in the fields; started follows the run that this page started.
    """

    summary: gr.HTML
    charts: gr.HTML
    log: gr.HTML
    cancel: gr.Button
    resume: gr.Button
    chat: gr.Button
    labels: gr.Accordion
    name: gr.Textbox
    note: gr.Textbox
    starred: gr.Checkbox
    labelled: gr.State
    started: gr.HTML
    seen: gr.State


@dataclass
class Choice:
    """Which run the panel shows, and which one this page has started (NEWEST: none)."""

    shown: gr.State
    started: gr.State


def lay_out(started: gr.HTML) -> Panel:
    """Lay out the panel. Must be called inside a gr.Blocks. started: the line below Start."""
    summary = gr.HTML(elem_id="run-summary")
    with gr.Row(elem_classes="buttons"):
        cancel = gr.Button("Cancel", visible=False, size="sm", min_width=90, elem_id="cancel")
        resume = gr.Button("Resume", visible=False, size="sm", min_width=90, elem_id="resume")
        chat = gr.Button("Chat with it", visible=False, size="sm", min_width=90, elem_id="to-chat")
    with gr.Accordion(
        "Name, note and star", open=False, visible=False, elem_id="labels-box"
    ) as labels:
        name = gr.Textbox(label="Name", max_lines=1, elem_id="run-name")
        note = gr.Textbox(label="Note", lines=2, max_lines=6, elem_id="run-note")
        starred = gr.Checkbox(label="Starred", elem_id="run-starred")
    charts = gr.HTML(elem_id="run-charts")
    with gr.Accordion(f"Log, last {LOG_LINES} lines", open=False, elem_id="log-box"):
        log = gr.HTML(autoscroll=True)
    buttons = cancel, resume, chat
    written = labels, name, note, starred
    return Panel(
        summary, charts, log, *buttons, *written, gr.State(0), started, gr.State(NOTHING_SEEN)
    )


def wire(
    app: App, header: Header, tabs: gr.Tabs, panel: Panel, choice: Choice, message: gr.HTML
) -> None:
    """Let the panel follow its run, and its buttons and fields act on it."""

    def refresh(run_id: int, started: int, seen: Any) -> Any:
        return show(app, run_id, started, seen)

    def open_chat(run_id: int) -> Any:
        return gr.Tabs(selected="chat"), run_id, run_id

    shown = choice.shown
    gr.on(
        [header.revision.change, shown.change, choice.started.change],
        refresh,
        [shown, choice.started, panel.seen],
        panel.outputs,
        trigger_mode="always_last",
        **PRIVATE,
    )
    drawn = panel.labelled  # another run may be at work by the time that a button is pressed
    stays = [message, shown]
    panel.cancel.click(partial(act_on, app.store.request_cancel), drawn, stays, **PRIVATE)
    panel.resume.click(partial(act_on, app.store.resume), drawn, stays, **PRIVATE)
    panel.chat.click(open_chat, drawn, [tabs, header.chosen, header.selector], **IN_ORDER)
    _wire_labels(app, panel, shown, message)


def act_on(action: Callable[[int], str], run_id: int) -> tuple[Any, Any]:
    """Do something to a run; return a message and the run to show: whoever acts on one goes on seeing it."""
    try:
        return parts.notice("empty", action(run_id)), run_id
    except UserError as error:
        return parts.notice("failed", error.message, error.hint), gr.skip()


def _wire_labels(app: App, panel: Panel, shown: gr.State, message: gr.HTML) -> None:
    def writing(part: str) -> Callable[[int, Any], Any]:
        """Each field writes its own part, so that none sends what another held a moment ago."""

        def write(run_id: int, value: Any) -> Any:
            try:
                before = app.store.run(run_id)
                after = app.store.label(run_id, Labels(**{part: value}))
            except UserError as error:
                return parts.notice("failed", error.message, error.hint)
            if after == before:
                return gr.skip()
            return parts.notice("done", f"What is written on run #{run_id} is kept.")

        return write

    pins = [panel.name.focus, panel.note.focus]  # a run that begins does not take the fields away
    gr.on(pins, lambda run_id: run_id, panel.labelled, shown, **PRIVATE)
    fields = {
        "name": (panel.name, [panel.name.blur, panel.name.submit]),
        "note": (panel.note, [panel.note.blur]),
        "starred": (panel.starred, [panel.starred.input]),
    }
    for part, (field, saves) in fields.items():
        gr.on(saves, writing(part), [panel.labelled, field], message, **PRIVATE)


def chosen(app: App, run_id: int) -> Run | None:
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


def show(app: App, run_id: int, started: int, seen: Any) -> list[Any]:
    """Return values for `Panel.outputs`; what a page has seen already is not sent again."""
    seen_run, seen_labels, seen_started = map(tuple, seen)
    run = chosen(app, run_id)
    position = app.store.queue_position(run.id) if run else 0
    now_run = (run.id, position, run.revision) if run else ("none", app.unpack_state)
    now_labels = (run.id, run.name, run.note, run.starred) if run else ("none",)
    line, now_started = _started(app, started)
    if (now_run, now_labels, now_started) == (seen_run, seen_labels, seen_started):
        return Panel.fill()
    values: dict[str, Any] = {"seen": (now_run, now_labels, now_started)}
    if now_run != seen_run:
        values |= app.shared.get(("panel", *now_run), lambda: _drawn(app, run, position))
    if now_labels != seen_labels:
        values |= _labels(run, seen_labels)
    if now_started != seen_started:
        values["started"] = line
    return Panel.fill(**values)


def _started(app: App, run_id: int) -> tuple[Any, tuple[Any, ...]]:
    """(the line below Start, what it depends on) of the run that a page has started."""
    if run_id == NEWEST:
        return "", ()
    try:
        run = app.store.run(run_id)
    except UserError:
        return "", ("deleted",)
    position = app.store.queue_position(run_id)
    facts = (run.id, run.state, position, run.cancel_requested, run.aside_for, run.error_message)
    return render_history.started_line(run, position), facts


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


def _labels(run: Run | None, seen: tuple[Any, ...]) -> dict[str, Any]:
    """Values for the fields of what people write on a run; of one that is shown already, only what has changed.

    seen: the run's id and its name, note and star that a page knows.
    """
    if run is None:
        return {"labels": gr.update(visible=False), "labelled": 0}
    written = {"name": run.name, "note": run.note, "starred": run.starred}
    if seen[:1] == (run.id,):
        known = dict(zip(written, seen[1:], strict=True))
        return {part: value for part, value in written.items() if value != known[part]}
    return {"labels": gr.update(visible=True), "labelled": run.id, **written}
