"""The word view: an answer beside the one of FP16. They are one text until they part, and two texts from there on.

Behind the parting only runs of several equal words mean anything; they are linked, so that pointing at one or reaching
it by keyboard shows the other.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

from ui.html import Html, Precision, join, plural, tag

#: Fewer equal words in a row are chance: "in the", "of a".
LEAST_RUN = 3
#: Words behind the parting that are compared, which bounds the time; what follows is shown without links.
COMPARED = 400
SIDES = "sides"


@lru_cache(maxsize=64)
def word_view(precision: Precision, reference: str, answer: str) -> Html:
    """Draw an answer beside FP16's: what both say, the place where they part, and how each goes on."""
    before, after = _words(reference), _words(answer)
    same = _common(before, after)
    if len(before) == len(after) == same:
        return join([_agreement("The same words as FP16."), _text(after)])
    links_before, links_after = _linked(before[same:], after[same:])
    shared = _text(after[:same])
    parting = tag("span", "\u25bc", class_="parting", title="here the answers part", role="img")
    parting_line = tag("p", parting, " here they part", class_="parting-line")
    ways = [
        _way("FP16", links_before),
        _way(precision, links_after),
    ]
    words = (
        f"The same as FP16 for {plural(same, 'word')}, then different."
        if same
        else "Different from FP16 from the first word on."
    )
    return join(
        [
            _agreement(words),
            shared if same else None,
            parting_line,
            tag("div", *ways, class_="ways"),
        ]
    )


def _words(text: str) -> list[str]:
    """The words of a text, each with the white space before it."""
    return re.findall(r"\s*\S+", text)


def _common(before: list[str], after: list[str]) -> int:
    pairs = zip(before, after, strict=False)
    return next(
        (at for at, (one, other) in enumerate(pairs) if one.strip() != other.strip()),
        min(len(before), len(after)),
    )


def _linked(before: list[str], after: list[str]) -> tuple[list[object], list[object]]:
    """Both texts in pieces: runs that stand in both are elements of one number."""
    before, after = (
        [*(word.lstrip() for word in words[:1]), *words[1:]] for words in (before, after)
    )
    bare = [[word.strip() for word in words[:COMPARED]] for words in (before, after)]
    matcher = difflib.SequenceMatcher(None, *bare, autojunk=False)
    runs = [run for run in matcher.get_matching_blocks() if run.size >= LEAST_RUN]
    sides: tuple[list[object], list[object]] = ([], [])
    for side, words, starts in (
        (sides[0], before, [run.a for run in runs]),
        (sides[1], after, [run.b for run in runs]),
    ):
        end = 0
        for number, (start, run) in enumerate(zip(starts, runs, strict=True)):
            side.append("".join(words[end:start]))
            end = start + run.size
            side.append(_run(number, words[start:end]))
        side.append("".join(words[end:]))
    return sides


def _run(number: int, words: list[str]) -> Html:
    first = words[0]
    blank = first[: len(first) - len(first.lstrip())]
    said = "".join(words)[len(blank) :]
    mark = tag("mark", said, data_link=number, tabindex=0, title="both answers say this")
    return join([blank, mark])


def _text(words: list[str]) -> Html:
    return tag("div", "".join(words), class_="plain", dir="auto")


def _way(precision: Precision, pieces: list[object]) -> Html:
    name = f"{precision} goes on" if any(pieces) else f"{precision} ends here"
    text = tag("div", *pieces, class_="plain", dir="auto")
    return tag("div", tag("b", name, class_=precision.lower()), text)


def _agreement(words: str) -> Html:
    sides = [tag("span", "Side by side"), tag("span", "One below the other")]
    button = tag("button", *sides, class_="link", data_action=SIDES)
    return tag("p", words, " ", button, class_="agreement")
