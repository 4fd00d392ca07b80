"""The word view: an answer beside the one of FP16."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ui.html import Html, join, plural, tag


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
