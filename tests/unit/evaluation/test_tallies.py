"""Votes are counted by pair, and the deck shows every prompt with every pair in an order that only the seed knows."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from upq.evaluation import Tally, deal, deck_cards, drawn_pair, pairs_of, tallies, winner
from upq.evaluation.votes import FEW_DECIDED
from upq.files import RESOURCES

ALL = pairs_of(["INT2", "INT4", "FP16"])


def test_votes_are_counted_by_pair_whichever_was_a() -> None:
    outcomes = [
        ("INT2", "FP16", "B"),
        ("FP16", "INT2", "A"),
        ("FP16", "INT2", "B"),
        ("INT2", "FP16", "tie"),
        ("FP16", "INT2", "bad"),
        ("INT4", "FP16", "same"),
        ("INT4", "FP16", "skipped"),
    ]
    assert tallies(outcomes) == [
        Tally(("FP16", "INT4"), same=1, skipped=1),
        Tally(("FP16", "INT2"), wins=2, losses=1, ties=1, bad=1),
    ]
    (_, tally) = tallies(outcomes)
    assert (tally.decided, tally.voted, round(tally.share, 3)) == (3, 5, 0.667)
    assert tallies([]) == []


def test_only_a_decided_vote_has_a_winner() -> None:
    assert winner("INT2", "FP16", "A") == "INT2"
    assert winner("INT2", "FP16", "B") == "FP16"
    assert [winner("INT2", "FP16", choice) for choice in ("tie", "bad", "same", "skipped")] == [
        ""
    ] * 4


@pytest.mark.parametrize(
    ("wins", "losses", "verdict"),
    [
        (0, 0, "too few: 0 of 20 decided votes"),
        (FEW_DECIDED - 1, 0, "too few: 19 of 20 decided votes"),
        (10, 10, "no difference shown"),
        (14, 6, "no difference shown"),  # 48 to 85 %
        (15, 5, "FP16 was found better"),  # 53 to 89 %
        (5, 15, "INT2 was found better"),
    ],
)
def test_a_difference_is_claimed_only_where_the_interval_leaves_out_a_half(
    wins: int, losses: int, verdict: str
) -> None:
    assert Tally(("FP16", "INT2"), wins, losses, ties=50, bad=50).verdict == verdict


def test_ties_and_equal_answers_are_no_part_of_the_share() -> None:
    plain, crowded = Tally(ALL[1], 15, 5), Tally(ALL[1], 15, 5, ties=9, bad=9, same=9, skipped=9)
    assert (plain.share, plain.interval) == (crowded.share, crowded.interval)
    assert [round(end, 3) for end in plain.interval] == [0.531, 0.888]


def test_programs_get_no_share_where_nobody_decided() -> None:
    values = Tally(ALL[0], ties=3).as_values()
    assert values["share"] is None
    assert (values["first"], values["second"], values["ties"]) == ("FP16", "INT4", 3)
    assert json.loads(json.dumps(values)) == values


def test_the_pairs_are_those_of_the_models_that_are_there() -> None:
    assert ALL == [("FP16", "INT4"), ("FP16", "INT2"), ("INT4", "INT2")]
    assert pairs_of(["INT4", "FP16"]) == [("FP16", "INT4")]
    assert pairs_of(["FP16"]) == []


def test_the_deck_is_forty_short_prompts_that_no_model_was_trained_on() -> None:
    cards = deck_cards()
    assert (
        len(cards) == len({card.id for card in cards}) == len({card.prompt for card in cards}) == 40
    )
    assert len({card.kind for card in cards}) >= 8
    assert max(len(card.prompt) for card in cards) < 200
    known: set[str] = set()
    for name in ("prompts_train", "prompts_held_out", "checks"):
        lines = (RESOURCES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        known |= {json.loads(line)["prompt"].casefold() for line in lines}
    assert not known & {card.prompt.casefold() for card in cards}


@pytest.mark.parametrize("pairs", [ALL, ALL[:1], []])
def test_every_prompt_comes_once_a_round_and_with_every_pair(pairs: list) -> None:
    dealt = deal(deck_cards(), pairs, 3)
    shown = Counter((one.card.id, frozenset(one.shown)) for one in dealt)
    assert shown == Counter((card.id, frozenset(pair)) for card in deck_cards() for pair in pairs)
    rounds = [one.round for one in dealt]
    assert rounds == sorted(rounds)
    assert set(Counter((one.round, one.card.id) for one in dealt).values()) <= {1}


def test_in_a_round_all_pairs_come_alike_often_and_each_is_shown_both_ways() -> None:
    first = [one.shown for one in deal(deck_cards(), ALL, 3) if one.round == 1]
    often = Counter(frozenset(shown) for shown in first)
    assert max(often.values()) - min(often.values()) <= 1
    assert len(set(first)) == 6
    assert first != sorted(first)


def test_the_seed_alone_decides_what_is_shown() -> None:
    cards = deck_cards()
    assert deal(cards, ALL, 3) == deal(cards, ALL, 3)
    assert deal(cards, ALL, 3) != deal(cards, ALL, 4)
    drawn = Counter(drawn_pair(ALL, seed) for seed in range(600))
    assert len(drawn) == 6
    assert min(drawn.values()) > 60, "all are alike likely"
    assert drawn_pair(ALL, 7) == drawn_pair(ALL, 7)
