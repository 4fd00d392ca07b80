"""The conversation of a column, as pure functions: messages, their actions and what stands below an answer.

What a person or a model wrote is never markup: text is escaped, and Markdown is drawn by `ui.html.markup.tag` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from ui.chat.render_words import word_difference
from ui.html import PRECISIONS, Html, Precision, duration, notice, plural, tag

#: What the columns can show: the answers, or each beside the one of FP16.
View = Literal["text", "token kl", "words"]
ENDINGS = {"length": "stopped at the token limit", "cancelled": "stopped by you"}


class _RoleAndContent(TypedDict):
    role: Literal["user", "assistant"]
    content: str


class Message(_RoleAndContent, total=False):
    """One message of a column, plain JSON. finish is "", "stop", "length", "cancelled" or "failed".

    seconds: from the question to the last token.
    """

    finish: str
    tokens: int
    prompt_tokens: int
    seconds: float
    hint: str


def conversation(
    precision: Precision,
    messages: Sequence[Message],
    *,
    view: View = "text",
    reference: Sequence[Message] = (),
) -> Html:
    """Draw the messages of a column in order; those of the last turn can be asked again.

    reference is the FP16 column, with which each answer is compared in the view "words".
    """
    if not messages:
        return notice("empty", "Ask something.", "The same message goes to every column.")
    partners = [message for message in reference if message["role"] == "assistant"]
    last = max(at for at, message in enumerate(messages) if message["role"] == "user")
    blocks: list[Html] = []
    turn = 0
    for at, message in enumerate(messages):
        if message["role"] == "user":
            blocks.append(question(message, actions=at == last and len(messages) > last + 1))
            continue
        partner = partners[turn] if turn < len(partners) else None
        compared = view == "words" and precision != "FP16" and partner is not None
        blocks.append(answer(message, partner["content"] if compared and partner else None))
        turn += 1
    return tag("div", *blocks, class_="conversation")


def question(message: Message, actions: bool) -> Html:
    """Draw what a person asked; with actions it can be edited, or asked again."""
    buttons = [_button("Edit", "edit"), _button("Again", "again")] if actions else []
    foot = tag("footer", *buttons) if buttons else None
    text = tag("div", message["content"], class_="text", dir="auto")
    return tag("div", text, foot, class_="message user")


def answer(message: Message, reference: str | None = None) -> Html:
    """Draw a finished answer and what is to be said about it."""
    finish = message.get("finish", "")
    if finish == "failed":
        return notice("failed", message["content"], message.get("hint", ""))
    body: object = message["content"] or "(an empty answer)"
    if reference is not None:
        body = word_difference(reference, message["content"])
    copy = _button("Copy", "copy", message["content"])
    foot = tag("footer", " · ".join(_facts(message)), copy)
    text = tag("div", body, class_="text plain", dir="auto")
    return tag("div", text, foot, class_="message answer")


def writing(message: Message | None, busy: str) -> Html:
    """Draw an answer that is being written, or what the column does before its first word."""
    text = message["content"] if message else ""
    shown = tag("div", text, tag("i", class_="caret"), class_="text plain", dir="auto")
    answer = tag("div", shown, class_="message answer") if message else None
    return tag("div", answer, notice("busy", busy) if busy else None, class_="conversation")


def _facts(message: Message) -> list[str]:
    facts = [plural(message.get("tokens", 0), "token")]
    facts += [duration(message["seconds"])] if "seconds" in message else []
    if "prompt_tokens" in message:
        facts.append(f"prompt {plural(message['prompt_tokens'], 'token')}")
    ending = ENDINGS.get(message.get("finish", ""))
    return [*facts, ending] if ending else facts


def _button(words: str, action: str, text: str | None = None) -> Html:
    return tag("button", words, class_="link", data_action=action, data_text=text)


def waiting_column(precision: Precision, training: str) -> Html:
    """Draw a column whose artifact does not exist yet. training tells what is done about it, or is empty."""
    if training:
        return notice("busy", training, "This column opens by itself.")
    return notice("empty", f"No {precision} yet.", "Start a run in Quantize.")


def phone_switch() -> Html:
    """Draw the buttons that choose the column which a narrow screen shows."""
    buttons = [
        tag("button", name, data_column=name.lower(), aria_pressed=str(name == "FP16").lower())
        for name in PRECISIONS
    ]
    return tag("div", *buttons, class_="switch", role="group", aria_label="Column")
