"""Chat: one message, three columns that answer at once or one after the other.

Each column is its own listener with its own concurrency id, so a slow one holds nobody back and a failing one fails
alone. Stopping sets an event that decoding asks between two tokens. What the page is told comes in order (IN_ORDER): a
message that follows the choice of a run goes to that run.

The flow is a circle: a question becomes a Turn (`asked` changes), the columns answer it, and when the last one is
through `over` changes, which panels beside the conversation listen to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App
from ui.chat import columns, compare, composer, history, questions, render, share, speeds, vote
from ui.chat.columns import Pane, Panes
from ui.chat.composer import SEND, Composer
from ui.chat.history import Doings, History
from ui.chat.questions import Sent
from ui.chat.render import View
from ui.chat.script import ANNOUNCED
from ui.chat.turn import Turn, models_behind
from ui.header import Header
from ui.html import PRECISIONS, Precision

NO_TURN = 0


@dataclass
class Chat:
    """The tab's components. turn: the Turn of the last question, or None; asked and over: its id, once it was asked and
    once its last column was through (NO_TURN where there is none); draft: what waits while a question is edited;
    announced: what a screen reader says.
    """

    panes: Panes
    composer: Composer
    turn: gr.State
    asked: gr.State
    over: gr.State
    draft: gr.State
    announced: gr.HTML

    @property
    def sent(self) -> Sent:
        """The components that change as soon as a question is asked."""
        box = self.composer
        return Sent(
            turn=self.turn,
            asked=self.asked,
            draft=self.draft,
            message=box.message,
            send=box.send,
            problem=box.problem,
            keep=box.keep,
            examples=box.examples,
            seed=box.seed,
            announced=self.announced,
        )

    @property
    def everything(self) -> list[Any]:
        """The components that a Change has values for."""
        panes = [self.panes[precision].outputs for precision in PRECISIONS]
        box = self.composer
        changing = [box.send, box.examples, box.problem, self.turn, self.over, self.announced]
        return [*chain.from_iterable(panes), *changing]

    @property
    def pasts(self) -> list[gr.HTML]:
        """Where the columns show their conversations."""
        return [self.panes[precision].past for precision in PRECISIONS]


@dataclass
class Change:
    """What a handler changes of the whole tab; the rest stays as it is.

    columns holds what changes in each pane, by the names of a Pane's components.
    """

    columns: dict[Precision, dict[str, Any]] = field(default_factory=dict)
    send: Any = field(default_factory=gr.skip)
    examples: Any = field(default_factory=gr.skip)
    problem: Any = field(default_factory=gr.skip)
    turn: Any = field(default_factory=gr.skip)
    over: Any = field(default_factory=gr.skip)
    announced: Any = field(default_factory=gr.skip)

    @property
    def values(self) -> list[Any]:
        """The change as values for `Chat.everything`."""
        panes = [Pane.fill(**self.columns.get(precision, {})) for precision in PRECISIONS]
        changing = [self.send, self.examples, self.problem, self.turn, self.over, self.announced]
        return [*chain.from_iterable(panes), *changing]


def build(app: App, header: Header) -> History:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    panes = columns.build()
    panel = compare.build()
    box = composer.build(app.offer)
    vote.build(app, header, box.view, box.settings)
    announced = gr.HTML(js_on_load=ANNOUNCED, elem_classes="unseen", elem_id="announced")
    chat = Chat(
        panes=panes,
        composer=box,
        turn=gr.State(None),
        asked=gr.State(NO_TURN),
        over=gr.State(NO_TURN),
        draft=gr.State(None),
        announced=announced,
    )
    _wire_questions(app, header, chat)
    _wire_answers(app, header, chat)
    _wire_stops(chat)
    _wire_views(app, header, chat)
    compare.wire(app, panel, chat)
    # A panel beside the conversation is built here: it listens to chat.over.change and reads chat.turn.
    doings = Doings(
        lambda turn, chosen: _start_over(app, turn, chosen).values,
        lambda before, turn, chosen, view: _take_up(app, before, turn, chosen, view).values,
    )
    share.build(app, header, chat)
    return history.build(app, header, chat, doings)


def _wire_questions(app: App, header: Header, chat: Chat) -> None:
    """Whatever asks a question makes a Turn: Send, Enter, an example, and the last question once more."""
    box = chat.composer
    form = [box.message, box.mode, *box.settings]
    before = [chat.turn, header.chosen]

    def wire(event: Any, handler: Any, inputs: list[Any]) -> None:
        event(handler, inputs, chat.sent.outputs, **IN_ORDER)

    def act(event: gr.EventData, turn: Any, chosen: Any, draft: Any, *values: Any) -> list[Any]:
        data: Any = event._data
        action = data.get("action") if isinstance(data, dict) else ""
        if action == "edit":
            return questions.edit(turn, draft, values[0])
        return questions.again(app, turn, chosen, *values) if action == "again" else Sent.fill()

    wire(box.message.submit, partial(questions.send, app), [*before, chat.draft, *form])
    wire(box.send.click, partial(questions.press, app), [box.send, *before, chat.draft, *form])
    wire(box.keep.click, questions.keep, [chat.draft])
    for button, text in zip(box.example_buttons, composer.EXAMPLES, strict=True):
        wire(button.click, partial(questions.example, app, text), [*before, *form])
    for pane in chat.panes.values():
        wire(pane.past.click, act, [*before, chat.draft, *form])


def _wire_answers(app: App, header: Header, chat: Chat) -> None:
    for precision, pane in chat.panes.items():
        answered = chat.asked.change(
            partial(columns.stream, app, precision),
            chat.turn,
            pane.outputs,
            concurrency_id=f"chat_{precision}",
            concurrency_limit=1,
            trigger_mode="multiple",  # an abandoned answer may still be ending
            **PRIVATE,
        )
        settled = answered.then(
            partial(_settled, app, precision),
            [chat.turn, header.chosen],
            chat.everything,
            trigger_mode="multiple",
            **IN_ORDER,
        )
        settled.then(
            columns.bodies,
            [chat.turn, chat.composer.view],
            chat.pasts,
            trigger_mode="multiple",
            **PRIVATE,
        )


def _settled(app: App, precision: Precision, turn: Turn | None, chosen: int | None) -> list[Any]:
    """After a column's answer, wipe what an abandoned one drew last, and offer Send when all are done."""
    change = _show(app, turn, chosen)
    if turn and not turn.abandoned:
        change.announced = render.announcement(precision, turn.histories.get(precision, []))
        if turn.is_over:
            speeds.measure(app, turn)
            change.send = gr.update(value=SEND, variant="primary")
            change.over = turn.id
    return change.values


def _wire_stops(chat: Chat) -> None:
    def stop_one(precision: Precision, current: Turn | None) -> None:
        if current:
            current.stop[precision].set()

    for precision, pane in chat.panes.items():
        pane.stop.click(partial(stop_one, precision), chat.turn, None, queue=False, **PRIVATE)


def _wire_views(app: App, header: Header, chat: Chat) -> None:
    gr.on(
        [header.progress.change, header.catalogs["chat"].change, header.chosen.change],
        lambda turn, chosen: _show(app, turn, chosen).values,
        [chat.turn, header.chosen],
        chat.everything,
        trigger_mode="always_last",
        **IN_ORDER,
    )
    chat.composer.clear.click(
        lambda turn, chosen: _start_over(app, turn, chosen).values,
        [chat.turn, header.chosen],
        chat.everything,
        **IN_ORDER,
    )
    chat.composer.view.change(
        columns.bodies, [chat.turn, chat.composer.view], chat.pasts, **PRIVATE
    )


def _start_over(app: App, turn: Turn | None, chosen: int | None) -> Change:
    if turn:
        turn.abandon()
    return Change(
        columns.at_rest(app, None, chosen),
        send=gr.update(value=SEND, variant="primary"),
        examples=gr.update(visible=True),
        problem="",
        turn=None,
        over=NO_TURN,
    )


def _take_up(app: App, before: Turn | None, turn: Turn, chosen: int | None, view: View) -> Change:
    """Show a conversation that was kept, whose turn is over, in place of the one before."""
    if before:
        before.abandon()
    drawn = columns.of_gone(turn) if turn.is_gone else columns.at_rest(app, turn, chosen)
    for precision, past in zip(PRECISIONS, columns.bodies(turn, view), strict=True):
        if turn.occupies(precision):
            drawn[precision] |= {"past": past, "now": "", "stop": gr.update(visible=False)}
    send = gr.update(value=SEND, variant="primary")
    examples = gr.update(visible=False)
    return Change(drawn, send=send, examples=examples, turn=turn, over=turn.id)


def _show(app: App, turn: Turn | None, chosen: int | None) -> Change:
    """Return columns, Send and turn after a change: all start over if another model answers in a column now."""
    if turn and not turn.goes_on_with(models_behind(app, chosen)):
        return _start_over(app, turn, chosen)
    return Change({} if turn and turn.is_gone else columns.at_rest(app, turn, chosen))
