"""The conversation of a column, as pure functions: messages, their actions and what stands below an answer.

What a person or a model wrote is never markup: text is escaped, and Markdown is drawn by `ui.html.markup.tag` alone.
Three columns would each tell a screen reader the same, so what they do is told once beside them: `loading` and
`announcement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypedDict

from ui.chat.render_words import word_view
from ui.html import (
    PRECISIONS,
    GrowingMarkdown,
    Html,
    Precision,
    duration,
    markdown,
    notice,
    plural,
    tag,
)

#: What the columns can show: the answers, or each beside the one of FP16.
View = Literal["text", "token kl", "words"]
ENDINGS = {"length": "stopped at the token limit", "cancelled": "stopped before its end"}


class _RoleAndContent(TypedDict):
    role: Literal["user", "assistant"]
    content: str


class Message(_RoleAndContent, total=False):
    """One message of a column, plain JSON. finish is "", "stop", "length", "cancelled" or "failed".

    turn: of a question its number in the conversation, from 1; seconds: from the question to the last token; repeats:
    the answer ends in a loop; left_out: earlier turns that were not read, because the model reads `limit` tokens at
    most; ids: the tokens of an answer, as long as the page is open.
    """

    turn: int
    finish: str
    tokens: int
    ids: Sequence[int]
    prompt_tokens: int
    seconds: float
    repeats: bool
    left_out: int
    limit: int
    hint: str


def conversation(
    precision: Precision,
    messages: Sequence[Message],
    *,
    view: View = "text",
    reference: Sequence[Message] = (),
) -> Html:
    """Draw the messages of a column in order; those of the last turn can be asked again.

    reference is the FP16 column, with whose answer to the same question each is compared in the view "words".
    """
    if not messages:
        return notice(
            "empty", "Ask something.", "The same message goes to every column.", is_told=False
        )
    partners = answers_by_turn(reference) if view == "words" else {}
    last = max(at for at, message in enumerate(messages) if message["role"] == "user")
    blocks: list[Html] = []
    turn: int | None = None
    for at, message in enumerate(messages):
        if message["role"] == "user":
            turn = message.get("turn")
            blocks.append(question(message, actions=at == last and len(messages) > last + 1))
            continue
        body = None
        if turn in partners and precision != "FP16" and message.get("finish") != "failed":
            body = word_view(precision, partners[turn]["content"], message["content"])
        blocks.append(answer(message, body))
    return tag("div", *blocks, class_="conversation")


def answers_by_turn(messages: Sequence[Message]) -> dict[int, Message]:
    """The answers of a column by the number of their question; one that failed is none."""
    found: dict[int, Message] = {}
    turn: int | None = None
    for message in messages:
        if message["role"] == "user":
            turn = message.get("turn")
        elif turn is not None and message.get("finish") != "failed":
            found[turn] = message
    return found


def question(message: Message, actions: bool) -> Html:
    """Draw what a person asked; with actions it can be edited, or asked again."""
    buttons = [_button("Edit", "edit"), _button("Again", "again")] if actions else []
    foot = tag("footer", *buttons) if buttons else None
    text = tag("div", message["content"], class_="text", dir="auto")
    return tag("div", text, foot, class_="message user")


def answer(message: Message, body: Html | None = None) -> Html:
    """Draw a finished answer, or `body` in its place, and what is to be said about it."""
    finish = message.get("finish", "")
    if finish == "failed":
        # `announcement` says it.
        return notice("failed", message["content"], message.get("hint", ""), is_told=False)
    shown = body or _drawn(message["content"]) or "(an empty answer)"
    copy = _button("Copy", "copy", message["content"])
    foot = tag("footer", tag("span", " · ".join(_facts(message)), title=_prompt(message)), copy)
    return tag(
        "div", tag("div", shown, class_="text"), foot, _cut(message), class_="message answer"
    )


#: What was said is drawn again after every turn, but does not change.
_drawn = lru_cache(maxsize=128)(markdown)


def writing(message: Message | None, busy: str, text: GrowingMarkdown) -> Html:
    """Draw an answer that is being written, or what the column does before its first word.

    text: what was drawn of this answer before.
    """
    if message is None:
        return notice("busy", busy, is_told=False)
    drawn = tag("div", text.draw(message["content"]), tag("i", class_="caret"), class_="text")
    return tag("div", drawn, class_="message answer")


def loading(precisions: Sequence[Precision]) -> str:
    """What a screen reader says when a question is asked that models have to be loaded for."""
    return f"Loading {', '.join(precisions)}."


def announcement(precision: Precision, messages: Sequence[Message]) -> str:
    """What a screen reader says when a column is through."""
    if not messages or messages[-1]["role"] == "user":
        return ""
    last = messages[-1]
    if last.get("finish") == "failed":
        return f"{precision} failed: {last['content']}"
    return f"{precision} has answered: {', '.join(_facts(last))}."


def _facts(message: Message) -> list[str]:
    facts = [plural(message.get("tokens", 0), "token")]
    facts += [duration(message["seconds"])] if "seconds" in message else []
    facts += filter(None, [ENDINGS.get(message.get("finish", ""))])
    facts += ["\u26a0 repeats itself"] if message.get("repeats") else []
    return facts


def _prompt(message: Message) -> str | None:
    if "prompt_tokens" not in message:
        return None
    return f"prompt {plural(message['prompt_tokens'], 'token')}"


def _cut(message: Message) -> Html | None:
    """Say how many turns were left out of what the model read, if any."""
    if not (turns := message.get("left_out")):
        return None
    were = "was" if turns == 1 else "were"
    limit = plural(message.get("limit", 0), "token")
    words = f"{plural(turns, 'earlier turn')} {were} left out: the model reads {limit}."
    return tag("p", words, class_="hint")


def _button(words: str, action: str, text: str | None = None) -> Html:
    return tag("button", words, class_="link", data_action=action, data_text=text)


def waiting_column(precision: Precision, training: str) -> Html:
    """Draw a column whose artifact does not exist yet. training tells what is done about it, or is empty."""
    if training:
        return notice("busy", training, "This column opens by itself.", is_told=False)
    return notice("empty", f"No {precision} yet.", "Start a run in Quantize.", is_told=False)


def phone_switch() -> Html:
    """Draw the buttons that choose the column which a narrow screen shows."""
    buttons = [
        tag("button", name, data_column=name.lower(), aria_pressed=str(name == "FP16").lower())
        for name in PRECISIONS
    ]
    return tag("div", *buttons, class_="switch", role="group", aria_label="Column")
