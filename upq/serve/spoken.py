"""An answer as it is sent: only what is new, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from upq.decode import Piece


class Said(NamedTuple):
    """The next words of an answer, and where it stands. finish: "stop" or "length" with the last one, else ""."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: str


def spoken(pieces: Iterator[Piece], stops: Sequence[str]) -> Generator[Said, None, None]:
    """Give what is new of each piece; an end that may become a stop string is held back until that is known."""
    sent = 0
    for piece in pieces:
        text, is_cut = before_stop(piece.text, stops)
        finish = "stop" if is_cut else piece.finish
        certain = len(text) if finish else len(text) - begun(text, stops)
        yield Said(text[sent:certain], piece.prompt_tokens, piece.tokens, finish)
        sent = max(sent, certain)
        if finish:
            return


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """What stands before the first stop string, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def begun(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    lengths = (
        length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])
    )
    return max(lengths, default=0)
