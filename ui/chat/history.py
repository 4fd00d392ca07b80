"""Beside the chat: the conversations that are kept, to be searched, opened, renamed, deleted and taken along.

`wanted` asks for a conversation to be opened, `opened` tells which one is, `deleted` which one went. Opening one makes
a Turn that is over; the chat goes on from there as from any other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, in_places
from ui.chat import keep, render_history
from ui.chat.render import View
from ui.chat.turn import Turn
from ui.header import Header, choices
from ui.html import Html, notice, parts
from upq.errors import UserError
from upq.store import SEARCH_CHARACTERS, Found

if TYPE_CHECKING:
    from ui.chat.tab import Chat

#: Lines of the list, and so many more with each press of Show more.
LINES = 30
#: What is taken along: the whole conversation, or a question by its number.
WHOLE = 0
#: The number that stands for all conversations.
ALL = 0
NOBODY = (-1, 0.0)
#: Delete asks first, and rename asks for the title.
CLICKS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const { action, number, title } = button.dataset;
  const sentence = { delete: `Delete "${title}"?`, clear: `Delete all ${title}?` }[action];
  if (sentence && !confirm(sentence)) return;
  const renamed = action === 'rename' ? prompt('New title', title) : '';
  if (renamed !== null) trigger('click', { action, number, title: renamed });
});"""


@dataclass
class History:
    """The panel. wanted and deleted hold the number of a conversation, and when that was asked for."""

    chat: Chat
    opened: gr.State
    wanted: gr.State
    deleted: gr.State
    limit: gr.State
    note: gr.HTML
    search: gr.Textbox
    kept: gr.HTML
    take: gr.Row
    part: gr.Dropdown
    ending: gr.Radio
    file: gr.DownloadButton


@dataclass(frozen=True)
class Doings:
    """What the tab does for this panel; each returns values for `chat.everything`.

    start_over: after the turn and the chosen run. take_up: in place of the turn before, a turn, in a view.
    """

    start_over: Callable[[Turn | None, int | None], list[Any]]
    take_up: Callable[[Turn | None, Turn, int | None, View], list[Any]]


def build(app: App, header: Header, chat: Chat, doings: Doings) -> History:
    """Lay out the panel below the message box and wire it. Must be called inside the tab."""
    history = _lay_out(chat)
    _wire_list(app, header, history)
    _wire_opening(app, header, history, doings)
    _wire_files(app, history)
    return history


def _lay_out(chat: Chat) -> History:
    note = gr.HTML(elem_id="history-note")
    with gr.Accordion("History and files", open=False, elem_classes="card", elem_id="chat-history"):
        search = gr.Textbox(
            label="Search titles, questions and answers",
            max_lines=1,
            max_length=SEARCH_CHARACTERS,
            elem_id="kept-search",
        )
        kept = gr.HTML(js_on_load=CLICKS, elem_id="kept")
        with gr.Row(visible=False, elem_id="take-along") as take:
            part = gr.Dropdown([], label="Take along", min_width=220, scale=2, elem_id="take-part")
            names = [(name, ending) for ending, (name, _) in keep.FILES.items()]
            ending = gr.Radio(names, value="md", label="As", min_width=260, elem_id="take-as")
            file = gr.DownloadButton("Download", size="sm", min_width=110, elem_id="take-file")
    return History(
        chat=chat,
        opened=gr.State(None),
        wanted=gr.State(NOBODY),
        deleted=gr.State(NOBODY),
        limit=gr.State(LINES),
        note=note,
        search=search,
        kept=kept,
        take=take,
        part=part,
        ending=ending,
        file=file,
    )


def _wire_list(app: App, header: Header, history: History) -> None:
    shown = [history.search, history.limit, history.opened]
    gr.on(
        [
            header.catalogs["chat"].change,
            history.search.change,
            history.limit.change,
            history.opened.change,
            history.chat.over.change,
        ],
        partial(_listed, app),
        shown,
        history.kept,
        trigger_mode="always_last",
        **PRIVATE,
    )
    history.search.change(lambda: LINES, None, history.limit, **PRIVATE)

    def act(event: gr.EventData, limit: int) -> list[Any]:
        return _act(app, event, limit)

    doing = [history.note, history.wanted, history.deleted, history.limit]
    history.kept.click(act, history.limit, doing, **PRIVATE).then(
        partial(_listed, app), shown, history.kept, **PRIVATE
    )


def _listed(app: App, text: str, limit: int, opened: int | None) -> Html:
    try:
        found = app.store.conversations.find(text or "", limit)
    except UserError as error:
        return notice("failed", error.message, error.hint)
    return render_history.kept_list(found, text or "", _run_names(app, found), opened)


def _run_names(app: App, found: Found) -> dict[int, str]:
    """What the runs of the conversations are called, of those that are still there."""
    names = {}
    for number in {line.run_id for line in found.lines if line.run_id is not None}:
        try:
            names[number] = parts.run_label(app.store.run(number))
        except UserError:
            continue
    return names


def _act(app: App, event: gr.EventData, limit: int) -> list[Any]:
    """Carry out a button of the list; return a note, what is wanted, what is deleted, and the length of the list."""
    data: Any = event._data if isinstance(event._data, dict) else {}
    action, text = str(data.get("action")), str(data.get("number", ""))
    number = int(text) if re.fullmatch("[0-9]{1,19}", text) else ALL
    kept, now = app.store.conversations, time.time()
    note, wanted, deleted = "", gr.skip(), gr.skip()
    try:
        if action == "open":
            wanted = (number, now)
        elif action == "rename":
            kept.rename(number, str(data.get("title", "")))
        elif action == "delete":
            kept.delete(number)
            deleted = (number, now)
        elif action == "clear":
            count = kept.delete_all()
            note, deleted = render_history.all_deleted(count), (ALL, now)
        elif action == "more":
            limit += LINES
    except UserError as error:
        note = notice("failed", error.message, error.hint)
    return [note, wanted, deleted, limit]


def _wire_opening(app: App, header: Header, history: History, doings: Doings) -> None:
    chat, settings = history.chat, history.chat.composer.settings

    filled = [*chat.everything, header.chosen, header.selector, history.note, *settings]

    def open_wanted(wanted: tuple[int, float], *now: Any) -> list[Any]:
        number, at = wanted
        values = _open(app, header, history, doings, (number, *now)) if at else {}
        return in_places(filled, values)

    def drop(deleted: tuple[int, float], turn: Turn | None, chosen: int | None) -> list[Any]:
        if turn is None or not _is_of(turn, deleted[0]):
            return in_places(chat.everything, {})
        turn.thread.is_deleted = True
        return doings.start_over(turn, chosen)

    history.wanted.change(
        open_wanted,
        [history.wanted, chat.turn, header.chosen, chat.composer.view],
        filled,
        **IN_ORDER,
    )
    history.deleted.change(
        drop, [history.deleted, chat.turn, header.chosen], chat.everything, **IN_ORDER
    )


def _is_of(turn: Turn, number: int) -> bool:
    place = turn.thread.place
    return place is not None and number in (ALL, place.id)


def _open(
    app: App,
    header: Header,
    history: History,
    doings: Doings,
    asked: tuple[int, Turn | None, int | None, View],
) -> dict[Any, Any]:
    """Take up a kept conversation with its run and its settings, or say why it cannot be.

    asked: its number, and the turn, the chosen run and the view of the page.
    """
    number, before, chosen, view = asked
    try:
        conversation = app.store.conversations.get(number)
        turn, choice = keep.opened(app, conversation, chosen)
    except UserError as error:
        return {history.note: notice("failed", error.message, error.hint)}
    everything = doings.take_up(before, turn, choice, view)
    values = [turn.system, *vars(turn.decoding).values()]
    return {
        **dict(zip(history.chat.everything, everything, strict=True)),
        **dict(zip([header.chosen, header.selector], choices(app, choice), strict=True)),
        **dict(zip(history.chat.composer.settings, values, strict=True)),
        history.note: render_history.run_is_gone(turn.run_id) if turn.is_gone else "",
    }


def _wire_files(app: App, history: History) -> None:
    chosen = [history.opened, history.part, history.ending]
    history.chat.over.change(
        partial(_now_open, app),
        [history.chat.turn, history.ending],
        [history.opened, history.note, history.take, history.part, history.file],
        **IN_ORDER,
    )
    gr.on(
        [history.part.input, history.ending.input],
        partial(_file, app),
        chosen,
        [history.file, history.note],
        **PRIVATE,
    )


def _now_open(app: App, turn: Turn | None, ending: str) -> list[Any]:
    """After a turn, or without one: the number of the open conversation, a note, and what can be taken along of it."""
    place, trouble = (turn.thread.place, turn.thread.trouble) if turn else (None, None)
    note = render_history.not_kept(trouble.message, trouble.hint) if trouble else gr.skip()
    if turn is None or place is None:
        return [None, note, gr.update(visible=False), gr.skip(), gr.skip()]
    questions = [*(exchange.question for exchange in turn.earlier), turn.message]
    parts_of_it = [("the whole conversation", WHOLE)]
    parts_of_it += [(f"question {at}: {text[:60]}", at) for at, text in enumerate(questions, 1)]
    file, problem = _file(app, place.id, WHOLE, ending)
    return [
        place.id,
        note if trouble else problem,
        gr.update(visible=True),
        gr.update(choices=parts_of_it, value=WHOLE),
        file,
    ]


def _file(app: App, opened: int | None, part: int, ending: str) -> tuple[Any, Any]:
    """Write what is taken along; return the button with it, and a note."""
    if not opened:
        return gr.skip(), gr.skip()
    try:
        conversation = app.store.conversations.get(opened)
        path = keep.write_file(app.own_folder(), conversation, ending, part or None)
    except UserError as error:
        return gr.skip(), notice("failed", error.message, error.hint)
    return gr.update(value=str(path)), gr.skip()
