"""An answer's tokens as pieces of its text, which joined give the decoded answer, sign by sign.

Where a character is made of several tokens, as most emoji are, these tokens are one piece: no half of a character can
be shown. Control and special tokens are pieces of their own and written out, such as <|im_end|>.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from upq.decode import REPLACEMENT
from upq.models import encode, special_ids

#: Any text of one plain token. Behind it other tokens are written as in the middle of a text, with their space.
_ANCHOR = "a"


@dataclass(frozen=True)
class TextPiece:
    """A piece of an answer: the tokens from index `start` on, up to but without index `end`."""

    text: str
    start: int
    end: int


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones written out and no space tidied up."""
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def text_pieces(tokenizer: Any, ids: Sequence[int]) -> list[TextPiece]:
    """The pieces of an answer in their order; each token is in one of them."""
    special = special_ids(tokenizer)
    whole = decoded(tokenizer, ids)
    pieces: list[TextPiece] = []
    anchor = start = shown = 0
    for end in range(1, len(ids) + 1):
        # What a tokenizer writes at the beginning of a text is special, so the piece before is decoded as well.
        before = decoded(tokenizer, ids[anchor:start])
        text = decoded(tokenizer, ids[anchor:end])[len(before) :]
        at_special = ids[end - 1] in special or (end < len(ids) and ids[end] in special)
        may_go_on = text.endswith(REPLACEMENT) and not at_special
        if end == len(ids):
            text = whole[shown:]
        elif may_go_on or not whole.startswith(text, shown):
            continue
        pieces.append(TextPiece(text, start, end))
        anchor, start, shown = start, end, shown + len(text)
    return pieces


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """The text of each token by itself, its leading space kept; REPLACEMENT stands for a part of a character."""
    anchor = encode(tokenizer, _ANCHOR)
    length = len(decoded(tokenizer, anchor))
    return {token: decoded(tokenizer, [*anchor, token])[length:] for token in set(ids)}
