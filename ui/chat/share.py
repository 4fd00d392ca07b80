"""A question as the parameters of a link, and back: what is asked and how, never what was answered.

Opening a link fills the message box and the settings. It sends nothing by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import gradio as gr

from ui.app_state import PRIVATE, App
from ui.chat import render_history
from ui.chat.turn import Turn
from ui.header import Header
from ui.html import Html, notice
from ui.requests import Question
from upq.errors import UserError

if TYPE_CHECKING:
    from ui.chat.tab import Chat

#: Longest link, characters, without the address of the app: browsers, proxies and chats take that much.
LONGEST_LINK = 8000
#: What a link calls the message; its settings have the names of the endpoint's arguments.
PROMPT = "prompt"
#: Completes the link by the address of the app, and copies it; where the browser forbids that it stays to be copied.
COPY = """watch('value', () => {
  const box = element.querySelector('[data-query]'), said = element.querySelector('.said');
  if (!box) return;
  box.textContent = `${location.origin}${location.pathname}?${box.dataset.query}`;
  navigator.clipboard?.writeText(box.textContent).then(() => { said.textContent = 'The link is copied.'; });
});"""
NAMES = (PROMPT, *(name for name in Question.model_fields if name != "message"))


def build(app: App, header: Header, chat: Chat) -> None:
    """Lay out the button that copies a link, and wire it. Must be called inside the tab."""
    with gr.Row(elem_classes="buttons"):
        button = gr.Button("Copy link to this question", size="sm", elem_id="copy-link")
    link = gr.HTML(js_on_load=COPY, elem_id="link")
    asked = [chat.turn, header.chosen, chat.composer.message, *chat.composer.settings]
    button.click(partial(_link, app), asked, link, **PRIVATE)


def _link(
    app: App, turn: Turn | None, chosen: int | None, message: str | None, *settings: Any
) -> Html:
    """The link of what is in the message box, or else of the last question."""
    run = app.context_run(chosen)
    try:
        question = Question.at([message or (turn.message if turn else ""), *settings])
        return render_history.link(link_of(question, run.id if run else None))
    except UserError as error:
        return notice("failed", error.message, error.hint)


def link_of(question: Question, run_id: int | None) -> str:
    """The parameters of a link that asks a question of a run. Raises UserError("link_too_long")."""
    asked = question.model_dump()
    values = {"tab": "chat", "run": run_id or 0, PROMPT: asked.pop("message"), **asked}
    link = urlencode({name: value for name, value in values.items() if value != ""})
    if len(link) > LONGEST_LINK:
        raise UserError(
            "link_too_long",
            f"The link would have {len(link):,} characters; expected at most {LONGEST_LINK:,}.",
            "Shorten the message or the system prompt, or take the conversation along as a file.",
        )
    return link


def question_of(parameters: Mapping[str, str]) -> Question | None:
    """The question of a link; None where it has none. Raises UserError("bad_argument")."""
    if PROMPT not in parameters:
        return None
    asked = {name: parameters[name] for name in NAMES if name in parameters}
    values: dict[str, Any] = {"message": asked.pop(PROMPT), "system": asked.pop("system", "")}
    return Question.of(values | {name: _number(text) for name, text in asked.items()})


def _number(text: str) -> int | float | str:
    """The number that a text says; a text that says none stays one, and is refused as such."""
    if re.fullmatch(r"\d{1,19}", text, re.ASCII):
        return int(text)
    is_number = re.fullmatch(r"\d{1,19}(\.\d{1,20})?(e-\d{1,3})?", text, re.ASCII)
    return float(text) if is_number else text
