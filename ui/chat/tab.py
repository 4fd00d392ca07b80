"""Chat: one message, three columns that answer at once or one after the other.

Each column is its own listener with its own concurrency id, so a slow one holds nobody back and a
failing one fails alone. Stopping sets an event that decoding asks between two tokens. What the page is
told comes in order (IN_ORDER): a message that follows the choice of a run goes to that run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, Outputs
from ui.chat import render
from ui.chat.render import View
from ui.chat.turn import Turn, answer, column, models_behind
from ui.header import Header
from ui.html import PRECISIONS, Precision, parts
from ui.requests import Question
from upq.errors import UserError

EXAMPLES = (
    "Explain in two sentences why the sky is blue.",
    "Write three bullet points about staying healthy, each under eight words.",
    "A train leaves at 14:10 and arrives at 16:45. How long is the trip?",
)
AT_ONCE, IN_TURN = "all at once (shared timing)", "one at a time (fair timing)"
VIEWS = ("text", "word difference")


@dataclass
class Pane(Outputs):
    """The components of one column."""

    head: gr.HTML
    body: gr.HTML
    stop: gr.Button


Panes = dict[Precision, Pane]


@dataclass
class Sent(Outputs):
    """The components that change as soon as a message is sent."""

    turn: gr.State
    message: gr.Textbox
    send: gr.Button
    problem: gr.HTML


@dataclass
class Change:
    """What a handler changes of the whole tab; the rest stays as it is.

    columns holds what changes in each pane, by the names of a Pane's components.
    """

    columns: dict[Precision, dict[str, Any]] = field(default_factory=dict)
    send: Any = field(default_factory=gr.skip)
    turn: Any = field(default_factory=gr.skip)

    @property
    def values(self) -> list[Any]:
        """The change as values for `_everything`."""
        columns = [Pane.fill(**self.columns.get(precision, {})) for precision in PRECISIONS]
        return [*chain.from_iterable(columns), self.send, self.turn]


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
        panes: Panes = {precision: _lay_out_pane(precision) for precision in PRECISIONS}
    controls = _lay_out_controls()
    turn = gr.State(None)
    _wire_send(app, header, panes, controls, turn)
    _wire_stops(panes, controls, turn)
    _wire_views(app, header, panes, controls, turn)


def _lay_out_pane(precision: Precision) -> Pane:
    name = precision.lower()
    with gr.Column(elem_classes="answer-column", min_width=300, elem_id=f"column-{name}"):
        head = gr.HTML(render.column_head(precision, {}), elem_id=f"head-{name}")
        body = gr.HTML(elem_classes="pane", autoscroll=True, elem_id=f"pane-{name}")
        stop = gr.Button(
            "Stop", size="sm", interactive=False, elem_classes="stop-one", elem_id=f"stop-{name}"
        )
    return Pane(head, body, stop)


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


def _wire_send(app: App, header: Header, panes: Panes, controls: Controls, turn: gr.State) -> None:
    sent = gr.on(
        [controls.send.click, controls.message.submit],
        partial(_send, app),
        [turn, header.chosen, controls.message, controls.mode, *controls.settings],
        Sent(turn, controls.message, controls.send, controls.problem).outputs,
        **IN_ORDER,
    )
    everything = _everything(panes, controls, turn)
    for precision, pane in panes.items():
        answered = sent.then(
            partial(_answer, app, precision),
            turn,
            pane.outputs,
            concurrency_id=f"chat_{precision}",
            concurrency_limit=1,
            trigger_mode="multiple",  # an abandoned answer may still be ending
            **PRIVATE,
        )
        settled = answered.then(
            lambda turn, chosen: _settle(app, turn, chosen).values,
            [turn, header.chosen],
            everything,
            trigger_mode="multiple",
            **IN_ORDER,
        )
        settled.then(
            _bodies,
            [turn, controls.view],
            [pane.body for pane in panes.values()],
            trigger_mode="multiple",
            **PRIVATE,
        )


def _everything(panes: Panes, controls: Controls, turn: gr.State) -> list[Any]:
    """Return the components that a Change has values for."""
    columns = [panes[precision].outputs for precision in PRECISIONS]
    return [*chain.from_iterable(columns), controls.send, turn]


def _send(
    app: App,
    before: Turn | None,
    chosen: int | None,
    message: str,
    mode: str,
    system: str,
    *decoding: Any,
) -> list[Any]:
    """Start a turn; return values for Sent: the turn, the emptied box and Send disabled, or what was wrong.

    The turn goes on where the one before ended, unless other models answer now: then the columns start over.
    """
    run = app.context_run(chosen)
    run_id = run.id if run else None
    models = models_behind(app, run_id)
    goes_on = before is not None and before.goes_on_with(models)
    if before and goes_on and not before.is_over:
        return Sent.fill()
    try:
        question = Question.at([message or "", system or "", *decoding])
        turn = Turn(
            message=question.message,
            system=question.system,
            decoding=question.decoding,
            one_at_a_time=mode == IN_TURN,
            run_id=run_id,
            models=models,
            histories=dict(before.histories) if before and goes_on else {},
        )
    except UserError as error:
        return Sent.fill(problem=parts.notice("failed", error.message, error.hint))
    if before and not goes_on:
        before.abandon()
    return Sent.fill(turn=turn, message="", send=gr.update(interactive=False), problem="")


def _answer(app: App, precision: Precision, turn: Turn | None) -> Iterator[Any]:
    """Stream one column: its head, its body and its Stop button. The turn keeps the messages."""
    yield Pane.fill()  # a listener that yields nothing would empty its column
    if turn is None or not turn.claim(precision):
        return
    history = turn.histories.get(precision, [])
    for progress in answer(app, turn, precision, turn.run_id, history):
        if turn.abandoned:
            return
        if progress.over:
            turn.histories[precision] = progress.messages
        body = render.conversation(precision, progress.messages, busy=progress.busy)
        head = render.column_head(precision, column(app, precision, turn.run_id).badge)
        yield Pane.fill(head=head, body=body, stop=gr.update(interactive=not progress.over))


def _settle(app: App, turn: Turn | None, chosen: int | None) -> Change:
    """After a column's answer, wipe what an abandoned one drew last, and enable Send when all are done."""
    change = _show(app, turn, chosen)
    if turn and turn.is_over and not turn.abandoned:
        change.send = gr.update(interactive=True)
    return change


def _bodies(turn: Turn | None, view: View) -> list[Any]:
    """Draw all columns in a view. A column without messages, or while one answers, keeps what it shows."""
    if turn is None or not turn.is_over:
        return [gr.skip() for _ in PRECISIONS]
    reference = turn.histories.get("FP16", [])
    return [
        render.conversation(precision, messages, view=view, reference=reference)
        if (messages := turn.histories.get(precision))
        else gr.skip()
        for precision in PRECISIONS
    ]


def _wire_stops(panes: Panes, controls: Controls, turn: gr.State) -> None:
    def stop_one(precision: Precision, current: Turn | None) -> None:
        if current:
            current.stop[precision].set()

    def stop_all(current: Turn | None) -> None:
        if current:
            current.stop_all()

    for precision, pane in panes.items():
        pane.stop.click(partial(stop_one, precision), turn, None, queue=False, **PRIVATE)
    controls.stop_all.click(stop_all, turn, None, queue=False, **PRIVATE)


def _wire_views(app: App, header: Header, panes: Panes, controls: Controls, turn: gr.State) -> None:
    everything = _everything(panes, controls, turn)
    gr.on(
        [header.progress.change, header.catalog.change, header.chosen.change],
        lambda turn, chosen: _show(app, turn, chosen).values,
        [turn, header.chosen],
        everything,
        trigger_mode="always_last",
        **IN_ORDER,
    )
    controls.clear.click(
        lambda turn, chosen: _start_over(app, turn, chosen).values,
        [turn, header.chosen],
        everything,
        **IN_ORDER,
    )
    controls.view.change(
        _bodies, [turn, controls.view], [pane.body for pane in panes.values()], **PRIVATE
    )


def _start_over(app: App, turn: Turn | None, chosen: int | None) -> Change:
    if turn:
        turn.abandon()
    return Change(_open_columns(app, None, chosen), send=gr.update(interactive=True), turn=None)


def _show(app: App, turn: Turn | None, chosen: int | None) -> Change:
    """Return columns, Send and turn after a change: all start over if another model answers in a column now."""
    if turn and not turn.goes_on_with(models_behind(app, chosen)):
        return _start_over(app, turn, chosen)
    return Change(_open_columns(app, turn, chosen))


def _open_columns(
    app: App, turn: Turn | None, chosen: int | None
) -> dict[Precision, dict[str, Any]]:
    """Draw the columns without a conversation: they are open, wait for their artifact, or it is in training."""
    columns: dict[Precision, dict[str, Any]] = {}
    for precision in PRECISIONS:
        if turn and turn.occupies(precision):
            continue
        state = column(app, precision, chosen)
        body = (
            render.conversation(precision, [])
            if state.source
            else render.waiting_column(precision, state.training)
        )
        head = render.column_head(precision, state.badge)
        columns[precision] = {"head": head, "body": body, "stop": gr.update(interactive=False)}
    return columns
