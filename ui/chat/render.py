"""The three columns of the chat: badges, conversation and word difference, as pure functions.

What a person or a model wrote is plain text: escaped, line breaks kept, never markup.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Literal, TypedDict

from ui.app_state import Badge, Timing
from ui.html import (
    NO_VALUE,
    Html,
    Precision,
    duration,
    fixed,
    join,
    notice,
    number,
    plural,
    size,
    tag,
)

View = Literal["text", "word difference"]
NOT_LOADED = "not loaded yet"


class _RoleAndContent(TypedDict):
    role: Literal["user", "assistant"]
    content: str


class Message(_RoleAndContent, total=False):
    """One message of a column. finish is "", "stop", "length", "cancelled" or "failed"."""

    finish: str
    tokens: int
    prompt_tokens: int
    hint: str


FAIR_HINT = "one column at a time, and no run at work"
SHARED_HINT = "while other columns or a run used the machine too"


def column_head(precision: Precision, badge: Badge) -> Html:
    """Draw the head of a column: name, measured size and memory, bits per weight, speeds, and what computes."""
    kind = precision.lower()
    subtitle = "reference" if precision == "FP16" else ""
    bits = badge.get("bits_per_weight")
    facts = [
        _fact("stored", size(badge.get("size_bytes"))),
        _fact("in memory", size(badge.get("memory_bytes"))),
        _fact("weights", f"{fixed(bits, 2)} bit" if bits else NO_VALUE),
    ]
    speeds = [
        _fact("speed, fair", _speed(badge.get("fair")), FAIR_HINT),
        _fact("speed, shared", _speed(badge.get("shared")), SHARED_HINT),
    ]
    loaded = f"loaded in {duration(badge['load_s'])}" if "load_s" in badge else ""
    return tag(
        "header",
        tag("h3", tag("span", precision, class_=kind), tag("small", subtitle)),
        tag("dl", *facts, class_="sizes"),
        tag("dl", *speeds, class_="speeds"),
        tag("p", badge.get("backend") or NOT_LOADED, class_="backend"),
        tag("p", " · ".join(filter(None, [loaded, badge.get("note", "")])) or " "),
        class_=f"column-head {kind}",
    )


def _fact(name: str, value: object, hint: str | None = None) -> Html:
    return tag("div", tag("dt", name, title=hint), tag("dd", value))


def _speed(timing: Timing | None) -> Html:
    """Draw tokens/s, and below it the time to the first token."""
    if not timing:
        return join([NO_VALUE, tag("small", " ")])
    rate, first = timing["tokens_per_s"], timing["first_token_s"]
    wait = f"{1000 * first:.0f} ms" if first < 1 else duration(first)
    return join(
        [f"{number(rate)} tok/s" if rate else NO_VALUE, tag("small", f"first token {wait}")]
    )


def conversation(
    precision: Precision,
    messages: Sequence[Message],
    *,
    view: View = "text",
    reference: Sequence[Message] = (),
    busy: str = "",
) -> Html:
    """Draw the messages of a column in order.

    reference is the FP16 column, compared answer by answer in the word difference view; busy tells what the column is
    doing before its first word arrives.
    """
    if not messages:
        return notice("empty", "Ask something.", "The same message goes to every column.")
    partners = [message for message in reference if message["role"] == "assistant"]
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
    if finish and "prompt_tokens" in message:
        foot.append(f"prompt {plural(message['prompt_tokens'], 'token')}")
    foot += [ending] if ending else []
    caret = None if finish else tag("i", class_="caret")
    line = tag("footer", " · ".join(foot)) if foot else None
    return tag("div", tag("div", body, caret, class_="text"), line, class_="message answer")


def word_difference(reference: str, answer: str) -> Html:
    """Draw the answer beside the reference: a minus marks the words that it leaves out, a plus those that it adds."""
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
    """Draw a column whose artifact does not exist yet. training tells what the live run does about it, or is empty."""
    if training:
        return notice("busy", training, "This column opens by itself.")
    return notice("empty", f"No {precision} yet.", "Start a run in Quantize.")
