"""The three columns: what each is made of, how an answer streams into it, and what it shows when none does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import App, Outputs
from ui.chat import render, render_history
from ui.chat.keep import kept_answer
from ui.chat.render import View
from ui.chat.render_head import NOT_KNOWN, NOT_LOADED, NOT_THERE, column_head
from ui.chat.script import PANE, SWITCH
from ui.chat.turn import Column, Progress, Turn, column
from ui.html import PRECISIONS, GrowingMarkdown, Html, Precision, parts


@dataclass
class Pane(Outputs):
    """The components of one column. past holds what is said, now the answer that is being written."""

    head: gr.HTML
    past: gr.HTML
    now: gr.HTML
    stop: gr.Button


Panes = dict[Precision, Pane]
#: A column is drawn so often while it answers, seconds, and drawing takes no larger part of a core than this.
PICTURE_S, SHARE = 0.1, 0.05


def build() -> Panes:
    """Lay out the columns; a narrow screen shows one of them, and buttons to choose it."""
    gr.HTML(parts.panel_title("Answers"), elem_classes="unseen")
    gr.HTML(render.phone_switch(), js_on_load=SWITCH, elem_id="column-switch")
    with gr.Row(equal_height=True, elem_id="columns"):
        panes: Panes = {precision: _lay_out(precision) for precision in PRECISIONS}
    return panes


def _lay_out(precision: Precision) -> Pane:
    name = precision.lower()
    with gr.Column(elem_classes="answer-column", min_width=260, elem_id=f"column-{name}"):
        head = gr.HTML(column_head(precision, {}, unknown=NOT_KNOWN), elem_id=f"head-{name}")
        with gr.Column(elem_classes="pane", elem_id=f"pane-{name}"):
            past = gr.HTML(js_on_load=PANE, elem_id=f"past-{name}")
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
    picture = _Picture(app, precision, turn)
    for progress in kept_answer(app, precision, turn):
        if turn.abandoned:
            return
        if progress.over:
            turn.histories[precision] = progress.messages
        if progress.over or picture.is_due:
            yield picture.draw(progress)


class _Picture:
    """What a column shows while it answers. Drawing is kept below SHARE of the time, all columns together."""

    def __init__(self, app: App, precision: Precision, turn: Turn) -> None:
        self._app, self._turn = app, turn
        self._precision: Precision = precision
        self._text = GrowingMarkdown()
        self._stage: tuple[bool, bool] | None = None
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the last picture is old enough for another one."""
        return time.monotonic() >= self._due

    def draw(self, progress: Progress) -> list[Any]:
        """The values of the Pane that have changed."""
        began = time.thread_time()
        values: dict[str, Any] = {}
        if self._stage is None:
            values["past"] = render.conversation(self._precision, progress.asked)
            values["stop"] = gr.update(visible=True)
        stage = (progress.answer is not None, progress.over)
        if stage != self._stage:  # the model is loaded by now, or timed
            self._stage = stage
            values["head"] = head_of(self._app, self._precision, self._turn.run_id)
        if progress.over:
            values["past"] = render.conversation(self._precision, progress.messages)
            values |= {"now": "", "stop": gr.update(visible=False)}
        else:
            values["now"] = render.writing(progress.answer, progress.busy, self._text)
        cost = time.thread_time() - began
        self._due = time.monotonic() + max(PICTURE_S, cost * len(PRECISIONS) / SHARE)
        return Pane.fill(**values)


def head_of(app: App, precision: Precision, chosen: int | None) -> Html:
    """Draw the head of a column for the chosen run or none, its speed beside FP16's."""
    state = column(app, precision, chosen)
    reference = column(app, "FP16", chosen).badge
    unknown = NOT_LOADED if state.source else NOT_THERE
    return column_head(precision, state.badge, reference, unknown)


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
        columns[precision] |= {
            "past": _without_answers(app, precision, state),
            "now": "",
            "stop": gr.update(visible=False),
        }
    return columns


def of_gone(turn: Turn) -> dict[Precision, dict[str, Any]]:
    """Draw the columns of a conversation whose run is deleted, without what is said in them. Values as `at_rest`."""
    columns: dict[Precision, dict[str, Any]] = {}
    for precision in PRECISIONS:
        columns[precision] = {"head": render_history.head_of_gone(precision)}
        if not turn.histories.get(precision):
            past = render_history.nothing_kept(precision)
            columns[precision] |= {"past": past, "now": "", "stop": gr.update(visible=False)}
    return columns


def _without_answers(app: App, precision: Precision, state: Column) -> Html:
    """Draw a column that nothing was said in: it is open, or waits for its artifact."""
    if state.source:
        return render.conversation(precision, [])
    is_told = precision == "INT4"  # INT2 waits for the same
    if not state.run_id and (notice := parts.unpacking(app.unpack_state, is_told=is_told)):
        return notice
    return render.waiting_column(precision, state.training)
