"""The three columns: what each is made of, how an answer streams into it, and what it shows when none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import App, Outputs
from ui.chat import render
from ui.chat.render import View
from ui.chat.render_head import column_head
from ui.chat.script import PANE, SWITCH
from ui.chat.turn import Turn, answer, column
from ui.html import PRECISIONS, Html, Precision


@dataclass
class Pane(Outputs):
    """The components of one column. past holds what is said, now the answer that is being written."""

    head: gr.HTML
    past: gr.HTML
    now: gr.HTML
    stop: gr.Button


Panes = dict[Precision, Pane]


def build() -> Panes:
    """Lay out the columns; a narrow screen shows one of them, and buttons to choose it."""
    gr.HTML(render.phone_switch(), js_on_load=SWITCH, elem_id="column-switch")
    with gr.Row(equal_height=True, elem_id="columns"):
        return {precision: _lay_out(precision) for precision in PRECISIONS}


def _lay_out(precision: Precision) -> Pane:
    name = precision.lower()
    with gr.Column(elem_classes="answer-column", min_width=260, elem_id=f"column-{name}"):
        head = gr.HTML(column_head(precision, {}), elem_id=f"head-{name}")
        with gr.Column(elem_classes="pane", elem_id=f"pane-{name}"):
            past = gr.HTML(js_on_load=PANE)
            now = gr.HTML(js_on_load=None)
        stop = gr.Button(
            "Stop", size="sm", visible=False, elem_classes="stop-one", elem_id=f"stop-{name}"
        )
    return Pane(head, past, now, stop)


def stream(app: App, precision: Precision, turn: Turn | None) -> Iterator[list[Any]]:
    """Stream the answer of one column, as values of its Pane. The turn keeps the messages."""
    yield Pane.fill()  # a listener that yields nothing would empty its column
    if turn is None or not turn.claim(precision):
        return
    history = turn.histories.get(precision, [])
    drawn = ""
    for progress in answer(app, turn, precision, turn.run_id, history):
        if turn.abandoned:
            return
        values: dict[str, Any] = {}
        if not drawn:
            values["past"] = render.conversation(precision, progress.asked)
            values["stop"] = gr.update(visible=True)
        if (head := head_of(app, precision, turn.run_id)) != drawn:
            values["head"] = drawn = head
        values["now"] = render.writing(progress.answer, progress.busy)
        if progress.over:
            turn.histories[precision] = progress.messages
            past = render.conversation(precision, progress.messages)
            values |= {"past": past, "now": "", "stop": gr.update(visible=False)}
        yield Pane.fill(**values)


def head_of(app: App, precision: Precision, chosen: int | None) -> Html:
    """Draw the head of a column for the chosen run or none, its speed beside FP16's."""
    badge = column(app, precision, chosen).badge
    return column_head(precision, badge, column(app, "FP16", chosen).badge)


def bodies(turn: Turn | None, view: View) -> list[Any]:
    """Draw the conversations in a view, as values of `past` of all panes.

    A column without messages, or while one answers, keeps what it shows.
    """
    if turn is None or not turn.is_over:
        return [gr.skip() for _ in PRECISIONS]
    reference = turn.histories.get("FP16", [])
    return [
        render.conversation(precision, messages, view=view, reference=reference)
        if (messages := turn.histories.get(precision))
        else gr.skip()
        for precision in PRECISIONS
    ]


def at_rest(app: App, turn: Turn | None, chosen: int | None) -> dict[Precision, dict[str, Any]]:
    """Draw all heads, and the columns without a conversation: they are open, or wait for their artifact.

    The values of each column are those of a Pane, by their names.
    """
    columns: dict[Precision, dict[str, Any]] = {}
    for precision in PRECISIONS:
        columns[precision] = {"head": head_of(app, precision, chosen)}
        if turn and turn.occupies(precision):
            continue
        state = column(app, precision, chosen)
        is_open = bool(state.source)
        columns[precision] |= {
            "past": render.conversation(precision, [])
            if is_open
            else render.waiting_column(precision, state.training),
            "now": "",
            "stop": gr.update(visible=False),
        }
    return columns
