"""Prompts that the teacher writes itself: it goes on from where the chat template begins what a user says.

Data is what long distillation lacks: the built-in prompts give half a million tokens. An instruct model has learned
what stands behind its user header, so sampling from there gives new prompts in its own distribution (Xu et al.,
Magpie, arXiv 2406.08464). Nothing here samples; who calls it says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from upq.errors import UserError
from upq.models import encode, render_chat, special_ids

#: Longest prompt. A small model that goes on for longer has mostly lost its thread and tells a story.
LONGEST = 128
#: Fewer words ask nothing.
FEWEST_WORDS = 3
#: Share of different words below which a text repeats itself; ordinary English of 100 words has about 0.65.
LEAST_DIFFERENT = 0.5
#: Draws for each prompt that is wanted, after which it is given up. The bundled model needs 1.3.
MOST_DRAWS = 10
#: A word that no template writes.
STAND_IN = "content7f3a91c2d0"
#: Scripts without spaces, Thai, Japanese and Chinese: each character counts as a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


@dataclass(frozen=True)
class UserTurn:
    """Where a chat template begins and ends what a user says.

    header: token ids of all that stands before it, a default system prompt included. ends: special tokens that end
    it. end_text: the first word behind it, for templates that end it with ordinary text; empty where `ends` do.
    """

    header: tuple[int, ...]
    ends: frozenset[int]
    end_text: str


def user_turn(tokenizer: Any) -> UserTurn:
    """Read it off a conversation with a stand-in. Raises UserError: no_user_header, bad_chat_template."""
    text = render_chat(tokenizer, [{"role": "user", "content": STAND_IN}])
    before, found, after = text.partition(STAND_IN)
    # A space belongs to the first word of the content, as most tokenizers cut.
    header = before.rstrip(" ")
    if not found or header in ("", tokenizer.bos_token):
        raise UserError(
            "no_user_header",
            "The chat template puts nothing before what a user says, so the model cannot be asked to write prompts.",
            "Set data.own_prompts to 0.",
        )
    behind = encode(tokenizer, after.lstrip())[:1]
    ends = frozenset(behind) & special_ids(tokenizer)
    return UserTurn(
        tuple(encode(tokenizer, header)), ends, "" if ends else next(iter(after.split()), "")
    )


def normalised(text: str) -> str:
    """Its words in lower case: prompts that differ in punctuation, case and spaces are one prompt."""
    return " ".join(_WORD.findall(text.casefold()))


def prompt_of(tokenizer: Any, turn: UserTurn, written: Sequence[int], ends: Set[int]) -> str:
    """The prompt that sampled tokens hold, or nothing if they are none worth asking.

    It must be complete, of at least FEWEST_WORDS words, readable, free of the template's markers, and must not
    repeat itself. ends: all tokens that end a turn.
    """
    complete = bool(written) and written[-1] in ends
    body = list(written[:-1] if complete else written)
    if not special_ids(tokenizer).isdisjoint(body):
        return ""
    text = str(tokenizer.decode(body))
    if turn.end_text and turn.end_text in text:
        complete, text = True, text.partition(turn.end_text)[0]
    words = normalised(text).split()
    fine = complete and "\ufffd" not in text and len(words) >= FEWEST_WORDS
    return text.strip() if fine and len(set(words)) >= LEAST_DIFFERENT * len(words) else ""


def new_prompts(
    wanted: int,
    batch: int,
    known: Iterable[str],
    draw: Callable[[range, int], list[str]],
) -> list[str]:
    """`wanted` different prompts, none of which is among `known`; fewer if MOST_DRAWS for each do not give them.

    draw(numbers of the draws, prompts so far): the prompt of each draw, empty where it was none; a pure function of
    the numbers, so more prompts begin with the same ones. Draws come by whole batches. Raises UserError
    no_own_prompts if there is not one.
    """
    seen = {"", *map(normalised, known)}
    kept: list[str] = []
    start = 0
    for start in range(0, MOST_DRAWS * wanted, batch):
        for text in draw(range(start, start + batch), len(kept)):
            if (key := normalised(text)) not in seen:
                seen.add(key)
                kept.append(text)
        if len(kept) >= wanted:
            break
    if wanted and not kept:
        raise UserError(
            "no_own_prompts",
            f"None of the {start + batch} prompts that the model wrote can be used: they are too short, do not end "
            "within the length, repeat themselves or are known already.",
            "Set data.own_prompts to 0, or raise data.sequence_tokens, half of which a prompt may take.",
        )
    return kept[:wanted]
