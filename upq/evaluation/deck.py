"""The deck: forty prompts to vote through, and how pairs of precisions are dealt to them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from upq.config import PrecisionName, derived_seed
from upq.evaluation.votes import Pair
from upq.files import RESOURCES

DECK = RESOURCES / "vote_deck.jsonl"


@dataclass(frozen=True)
class Card:
    """A prompt of the deck. kind: what it asks for, such as fact or code."""

    id: str
    kind: str
    prompt: str


@dataclass(frozen=True)
class Showing:
    """A prompt, and the precisions that answer it as A and as B. round: 1 for the first time that it comes."""

    card: Card
    shown: Pair
    round: int


@cache
def deck_cards() -> tuple[Card, ...]:
    """The prompts that ship with the app."""
    lines = DECK.read_text(encoding="utf-8").splitlines()
    return tuple(Card(**json.loads(line)) for line in lines)


def deal(cards: Sequence[Card], pairs: Sequence[Pair], seed: int) -> list[Showing]:
    """Show every prompt with every pair: as many rounds as there are pairs, and in each round each prompt once.

    All is drawn from the seed: the order of the prompts, which pair comes when (all equally often, as far as that goes)
    and which of the two is A.
    """
    draw = random.Random(derived_seed(seed, "deck"))
    turns = [place % len(pairs) for place in range(len(cards))] if pairs else []
    draw.shuffle(turns)
    dealt: list[Showing] = []
    for number in range(len(pairs)):
        in_order = list(zip(cards, turns, strict=True))
        draw.shuffle(in_order)
        for card, turn in in_order:
            pair = pairs[(turn + number) % len(pairs)]
            dealt.append(Showing(card, _in_order(pair, draw), number + 1))
    return dealt


def drawn_pair(pairs: Sequence[Pair], seed: int) -> Pair:
    """Which pair answers a question, and which of the two is A."""
    draw = random.Random(derived_seed(seed, "question"))
    return _in_order(draw.choice(pairs), draw)


def _in_order(pair: Pair, draw: random.Random) -> tuple[PrecisionName, PrecisionName]:
    first, second = pair
    return (second, first) if draw.random() < 1 / 2 else (first, second)
