"""Chat: one message, three columns that answer at once or one after the other.

Each column is its own listener with its own concurrency id, so a slow one holds nobody back and a
failing one fails alone. Stopping sets an event that decoding asks between two tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui import render, render_chat
from ui.app_state import PRIVATE, App, Turn
from ui.chat_turn import answer, checked_message, column, decoding_of
from ui.header import Header
from ui.render_chat import Message, View
from ui.words import PRECISIONS, Precision
from upq.errors import UserError

EXAMPLES = (
    "Explain in two sentences why the sky is blue.",
    "Write three bullet points about staying healthy, each under eight words.",
    "A train leaves at 14:10 and arrives at 16:45. How long is the trip?",
)
AT_ONCE, IN_TURN = "all at once", "one at a time (fair timing)"
VIEWS = ("text", "word difference")


@dataclass
class Pane:
    """One column's components."""

    precision: Precision
    head: gr.HTML
    body: gr.HTML
    stop: gr.Button
    history: gr.State

    @property
    def outputs(self) -> list[Any]:
        return [self.head, self.body, self.stop, self.history]


@dataclass
class Controls:
    """The message box and the settings below it."""

    message: gr.Textbox
    send: gr.Button
    stop_all: gr.Button
    clear: gr.Button
    mode: gr.Radio
    view: gr.Radio
    settings: list[Any]
    problem: gr.HTML


def build(app: App, header: Header) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    with gr.Row(equal_height=True):
        panes = [_lay_out_pane(precision) for precision in PRECISIONS]
    controls = _lay_out_controls()
    turn_id = gr.State("")
    _wire_send(app, header, panes, controls, turn_id)
    _wire_stops(app, panes, controls, turn_id)
    _wire_views(app, header, panes, controls, turn_id)


def _lay_out_pane(precision: Precision) -> Pane:
    name = precision.lower()
    with gr.Column(elem_classes="answer-column", min_width=300, elem_id=f"column-{name}"):
        head = gr.HTML(render_chat.column_head(precision, None, []), elem_id=f"head-{name}")
        body = gr.HTML(elem_classes="pane", autoscroll=True, elem_id=f"pane-{name}")
        stop = gr.Button(
            "Stop", size="sm", interactive=False, elem_classes="stop-one", elem_id=f"stop-{name}"
        )
    return Pane(precision, head, body, stop, gr.State([]))


def _lay_out_controls() -> Controls:
    with gr.Column(elem_classes="card", elem_id="composer"):
        with gr.Row(elem_classes="examples"):
            examples = [gr.Button(text, size="sm", min_width=200) for text in EXAMPLES]
        with gr.Row(elem_classes="send-row"):
            message = gr.Textbox(
                show_label=False,
                container=False,
                placeholder="Message to all three",
                scale=8,
                min_width=240,
                max_lines=8,
                elem_id="message",
            )
            send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
            stop_all = gr.Button("Stop all", scale=1, min_width=90, elem_id="stop-all")
            clear = gr.Button("New chat", scale=1, min_width=90, elem_id="new-chat")
        problem = gr.HTML(elem_id="chat-problem")
        with gr.Row():
            mode = gr.Radio([AT_ONCE, IN_TURN], value=AT_ONCE, label="Answer", elem_id="mode")
            view = gr.Radio(VIEWS, value="text", label="View", elem_id="view")
        with gr.Accordion("System prompt and decoding", open=False):
            settings = _lay_out_settings()
    for button, text in zip(examples, EXAMPLES, strict=True):
        button.click(partial(str, text), None, message, **PRIVATE)
    return Controls(message, send, stop_all, clear, mode, view, settings, problem)


def _lay_out_settings() -> list[Any]:
    system = gr.Textbox("", label="System prompt", lines=2, info="empty: the model's own default")
    with gr.Row():
        limit = gr.Slider(8, 2048, 256, step=8, label="Longest answer, tokens")
        temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1 keeps every token")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    return [system, limit, temperature, top_p, seed]


def _wire_send(
    app: App, header: Header, panes: list[Pane], controls: Controls, turn_id: gr.State
) -> None:
    sent = gr.on(
        [controls.send.click, controls.message.submit],
        partial(_send, app),
        [controls.message, controls.mode, turn_id, *controls.settings],
        [turn_id, controls.message, controls.send, controls.problem],
        **PRIVATE,
    )
    histories = [pane.history for pane in panes]
    for pane in panes:
        answered = sent.then(
            partial(_answer, app, pane.precision),
            [turn_id, header.chosen, pane.history],
            pane.outputs,
            concurrency_id=f"chat_{pane.precision}",
            concurrency_limit=1,
            **PRIVATE,
        )
        answered.then(
            partial(_finish, app),
            [turn_id, controls.view, *histories],
            [controls.send, *(pane.body for pane in panes)],
            **PRIVATE,
        )


def _send(
    app: App, message: str, mode: str, turn_id: str, system: str, *decoding: Any
) -> tuple[Any, Any, Any, Any]:
    """Start a turn: its id, the emptied box, Send disabled, and what was wrong with it."""
    running = app.turns.get(turn_id)
    if running and not running.is_over:
        return gr.skip(), gr.skip(), gr.skip(), gr.skip()
    try:
        turn = Turn(
            message=checked_message(message or ""),
            system=system or "",
            decoding=decoding_of(*decoding),
            one_at_a_time=mode == IN_TURN,
        )
    except UserError as error:
        problem = render.notice("failed", error.message, error.hint)
        return gr.skip(), gr.skip(), gr.skip(), problem
    return app.add_turn(turn), "", gr.update(interactive=False), ""


def _answer(
    app: App, precision: Precision, turn_id: str, run_id: int | None, history: list[Message]
) -> Iterator[Any]:
    """Stream one column: head, body, its Stop button, and at the end its history."""
    yield [gr.skip()] * 4  # a listener that yields nothing would empty its column
    turn = app.turns.get(turn_id)
    if turn is None or not turn.claim(precision):
        return
    for progress in answer(app, turn, precision, run_id, history):
        if turn.abandoned:
            return
        body = render_chat.conversation(precision, progress.messages, busy=progress.busy)
        head = _head(app, precision, run_id, progress.messages)
        kept = progress.messages if progress.over else gr.skip()
        yield head, body, gr.update(interactive=not progress.over), kept


def _head(app: App, precision: Precision, run_id: int | None, messages: list[Message]) -> Any:
    return render_chat.column_head(precision, column(app, precision, run_id).badge, messages)


def _finish(app: App, turn_id: str, view: View, *histories: list[Message]) -> Any:
    """When all columns are done: enable Send, and draw differences now that all texts are there."""
    turn = app.turns.get(turn_id)
    if turn is None or not turn.is_over or turn.abandoned:
        return [gr.skip()] * 4
    bodies = [gr.skip()] * 3 if view == "text" else _bodies(view, histories)
    return [gr.update(interactive=True), *bodies]


def _bodies(view: View, histories: Any) -> list[Any]:
    """All columns in a view; a column without messages keeps what it shows."""
    return [
        render_chat.conversation(precision, messages, view=view, reference=histories[0])
        if messages
        else gr.skip()
        for precision, messages in zip(PRECISIONS, histories, strict=True)
    ]


def _wire_stops(app: App, panes: list[Pane], controls: Controls, turn_id: gr.State) -> None:
    def stop_one(precision: Precision, current: str) -> None:
        if turn := app.turns.get(current):
            turn.stop[precision].set()

    def stop_all(current: str) -> None:
        if turn := app.turns.get(current):
            turn.stop_all()

    for pane in panes:
        pane.stop.click(partial(stop_one, pane.precision), turn_id, None, queue=False, **PRIVATE)
    controls.stop_all.click(stop_all, turn_id, None, queue=False, **PRIVATE)


def _wire_views(
    app: App, header: Header, panes: list[Pane], controls: Controls, turn_id: gr.State
) -> None:
    histories = [pane.history for pane in panes]
    everything = [output for pane in panes for output in pane.outputs]

    def show(run_id: int | None, current: str, *told: list[Message]) -> Any:
        return _show(app, run_id, current, told)

    def start_over(run_id: int | None, current: str) -> Any:
        if turn := app.turns.get(current):
            turn.abandoned = True
            turn.stop_all()
        return [*_show(app, run_id, "", ([], [], [])), gr.update(interactive=True), ""]

    gr.on(
        [header.revision.change, header.catalog.change],
        show,
        [header.chosen, turn_id, *histories],
        everything,
        trigger_mode="always_last",
        **PRIVATE,
    )
    gr.on(
        [controls.clear.click, header.chosen.change],
        start_over,
        [header.chosen, turn_id],
        [*everything, controls.send, turn_id],
        **PRIVATE,
    )
    controls.view.change(
        _bodies_or_skip(app),
        [controls.view, turn_id, *histories],
        [p.body for p in panes],
        **PRIVATE,
    )


def _bodies_or_skip(app: App) -> Any:
    def bodies(view: View, current: str, *histories: list[Message]) -> Any:
        turn = app.turns.get(current)
        return _bodies(view, histories) if turn is None or turn.is_over else [gr.skip()] * 3

    return bodies


def _show(app: App, run_id: int | None, turn_id: str, histories: Any) -> list[Any]:
    """Columns without a conversation: open, waiting for their artifact, or in training."""
    turn = app.turns.get(turn_id)
    outputs: list[Any] = []
    for precision, messages in zip(PRECISIONS, histories, strict=True):
        if messages or (turn and not turn.done[precision].is_set()):
            outputs += [gr.skip()] * 4
            continue
        state = column(app, precision, run_id)
        body = (
            render_chat.conversation(precision, [])
            if state.source
            else render_chat.waiting_column(precision, state.training)
        )
        head = render_chat.column_head(precision, state.badge, [])
        outputs += [head, body, gr.update(interactive=False), []]
    return outputs
