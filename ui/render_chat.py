"""The three columns of the chat: badges, conversation and word difference, as pure functions.

What a person or a model wrote is plain text: escaped, line breaks kept, never markup.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, TypedDict

from ui.html import Html, join, tag
from ui.render import notice
from ui.words import NO_VALUE, Precision, duration, fixed, number, plural, size

View = Literal["text", "word difference"]


class _Said(TypedDict):
    role: Literal["user", "assistant"]
    content: str


class Message(_Said, total=False):
    """One message of a column. finish is "", "stop", "length", "cancelled" or "failed"."""

    finish: str
    tokens: int
    tokens_per_s: float
    first_token_s: float
    hint: str


class Badge(TypedDict, total=False):
    """What a column's head says about its model; all of it measured, nothing guessed."""

    size_bytes: int
    memory_bytes: int
    bits_per_weight: float
    backend: str
    note: str


def column_head(precision: Precision, badge: Badge | None, messages: Sequence[Message]) -> Html:
    """Name, measured size and memory, bits per weight, and the speed of the last answer."""
    kind = precision.lower()
    subtitle = "reference" if precision == "FP16" else ""
    name = tag("h3", tag("span", precision, class_=kind), tag("small", subtitle))
    badge = badge or {}
    bits = badge.get("bits_per_weight")
    answers = [one for one in messages if one["role"] == "assistant" and one.get("tokens")]
    last = answers[-1] if answers else None
    facts = [
        ("stored", size(badge.get("size_bytes"))),
        ("memory", size(badge.get("memory_bytes"))),
        ("weights", f"{fixed(bits, 2)} bit" if bits else NO_VALUE),
        ("speed", _speed(last)),
        ("first token", duration(last.get("first_token_s")) if last else NO_VALUE),
    ]
    rows = tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts))
    origin = " · ".join(filter(None, [badge.get("backend", ""), badge.get("note", "")]))
    return tag("header", name, rows, tag("p", origin or " "), class_=f"column-head {kind}")


def _speed(last: Message | None) -> str:
    rate = last.get("tokens_per_s") if last else None
    return f"{number(rate)} tok/s" if rate else NO_VALUE


def conversation(
    precision: Precision,
    messages: Sequence[Message],
    *,
    view: View = "text",
    reference: Sequence[Message] = (),
    busy: str = "",
) -> Html:
    """A column's messages in order.

    reference: the FP16 column, compared answer by answer in the word difference view.
    busy: what the column is doing before its first word arrives.
    """
    if not messages:
        return notice("empty", "Ask something.", "The same message goes to every column.")
    partners = [one for one in reference if one["role"] == "assistant"]
    blocks: list[Html] = []
    turn = 0
    for message in messages:
        if message["role"] == "user":
            blocks.append(tag("div", message["content"], class_="message user"))
            continue
        partner = partners[turn] if turn < len(partners) else None
        compared = view == "word difference" and precision != "FP16" and partner is not None
        blocks.append(_answer(message, partner["content"] if compared and partner else None))
        turn += 1
    if busy:
        blocks.append(notice("busy", busy))
    return tag("div", *blocks, class_="conversation")


def _answer(message: Message, reference: str | None) -> Html:
    finish = message.get("finish", "")
    if finish == "failed":
        return notice("failed", message["content"], message.get("hint", ""))
    body: object = message["content"] or ("" if not finish else "(an empty answer)")
    if reference is not None and finish:
        body = word_difference(reference, message["content"])
    ending = {"length": "stopped at the token limit", "cancelled": "stopped by you"}.get(finish)
    foot = [plural(message.get("tokens", 0), "token")] if finish else []
    foot += [ending] if ending else []
    caret = None if finish else tag("i", class_="caret")
    line = tag("footer", " · ".join(foot)) if foot else None
    return tag("div", tag("div", body, caret, class_="text"), line, class_="message answer")


def word_difference(reference: str, answer: str) -> Html:
    """The answer with the words it leaves out, marked with a minus, and adds, with a plus, against the reference."""
    before, after = (re.findall(r"\s+|[^\s]+", text) for text in (reference, answer))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    parts: list[object] = []
    for operation, first, last, start, end in matcher.get_opcodes():
        if operation == "equal":
            parts.append("".join(after[start:end]))
            continue
        parts.append(_change("del", "\u2212 ", "".join(before[first:last])))
        parts.append(_change("ins", "+ ", "".join(after[start:end])))
    return join([tag("p", _agreement(before, after), class_="agreement"), *parts])


def _change(name: str, mark: str, text: str) -> Html | None:
    return tag(name, tag("b", mark), text) if text.strip() else None


def _agreement(before: Sequence[str], after: Sequence[str]) -> str:
    words = [word for word in after if not word.isspace()]
    others = [word for word in before if not word.isspace()]
    same = next(
        (at for at, pair in enumerate(zip(others, words, strict=False)) if pair[0] != pair[1]),
        min(len(words), len(others)),
    )
    if words == others:
        return "The same words as FP16."
    if not same:
        return "Different from FP16 from the first word on."
    return f"The same as FP16 for {plural(same, 'word')}, then different."


def waiting_column(precision: Precision, training: str) -> Html:
    """A column whose artifact does not exist yet. training: what the live run does, or empty."""
    if training:
        return notice("busy", training, "This column opens by itself.")
    return notice("empty", f"No {precision} yet.", "Start a run in Quantize.")
