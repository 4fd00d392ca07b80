"""A showing of two answers counts once, whoever votes on it and how often, and a deleted run takes its votes along."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store, Vote, Written, open_store, question_digest, votes_csv
from upq.store import votes as store_votes

SETTINGS = {"system": "", "max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": 0}


def a_vote(run_id: int, **changes: Any) -> Vote:
    vote = Vote(
        showing="one",
        run_id=run_id,
        deck_id="fact-capital",
        prompt="What is the capital?",
        settings=SETTINGS,
        seed=5,
        shown_a="INT2",
        shown_b="FP16",
        answer_a="Porto",
        answer_b="Lisbon",
        choice="B",
    )
    return replace(vote, **changes)


def ended_run(store: Store) -> int:
    run_id = store.enqueue(RunConfig())
    store.request_cancel(run_id)
    return run_id


def test_a_vote_is_kept_with_all_that_it_was_about(store: Store) -> None:
    vote = a_vote(ended_run(store))
    assert store.votes.cast(vote)
    (kept,) = store.votes.of(vote.run_id)
    assert kept.at > 0
    assert replace(kept, at=0.0) == vote
    assert kept.better == "FP16"
    assert store.votes.outcomes(vote.run_id) == [("INT2", "FP16", "B")]
    assert store.votes.runs() == [vote.run_id]


def test_a_second_click_and_a_second_window_change_nothing(store: Store, tmp_path: Path) -> None:
    vote = a_vote(ended_run(store))
    other_window = open_store(tmp_path)
    assert store.votes.cast(vote)
    before = store.latest_revision(), store.votes.newest()
    assert not store.votes.cast(vote)
    assert not other_window.votes.cast(replace(vote, choice="A"))
    other_window.close()
    assert [one.choice for one in store.votes.of()] == ["B"]
    assert (store.latest_revision(), store.votes.newest()) == before


def test_pages_hear_of_a_vote(store: Store) -> None:
    run_id = ended_run(store)
    before = store.latest_revision(), store.votes.newest()
    store.votes.cast(a_vote(run_id))
    assert store.latest_revision() > before[0]
    assert store.votes.newest() != before[1]


def test_a_deleted_run_takes_no_vote_and_keeps_none(store: Store) -> None:
    run_id, other = ended_run(store), ended_run(store)
    digest = question_digest("hi", SETTINGS)
    store.votes.cast(a_vote(run_id))
    store.votes.cast(a_vote(other, showing="two"))
    store.votes.keep_answer(run_id, "INT2", digest, Written("Hello.", "stop"))
    store.delete(run_id)
    assert [vote.run_id for vote in store.votes.of()] == [other]
    assert store.votes.answer(run_id, "INT2", digest) is None
    for write in (
        lambda: store.votes.cast(a_vote(run_id, showing="three")),
        lambda: store.votes.keep_answer(run_id, "INT2", digest, Written("Hello.", "stop")),
    ):
        with pytest.raises(UserError) as caught:
            write()
        assert caught.value.code == "run_not_found"


def test_everybody_has_a_deck_of_their_own(store: Store) -> None:
    run_id = ended_run(store)
    store.votes.cast(a_vote(run_id, showing="mine", choice="skipped"))
    store.votes.cast(a_vote(run_id, showing="yours"), owner="you")
    assert store.votes.showings(run_id) == {"mine"}
    assert store.votes.showings(run_id, "you") == {"yours"}


def test_the_first_answer_to_a_question_stays(store: Store) -> None:
    run_id = ended_run(store)
    digest = question_digest("hi", SETTINGS)
    assert store.votes.answer(run_id, "INT2", digest) is None
    for text in ("first", "second"):
        store.votes.keep_answer(run_id, "INT2", digest, Written(text, "length"))
    assert store.votes.answer(run_id, "INT2", digest) == Written("first", "length")
    assert store.votes.answer(run_id, "INT4", digest) is None


def test_a_question_is_another_one_with_other_settings() -> None:
    digests = [
        question_digest("hi", SETTINGS),
        question_digest("ho", SETTINGS),
        question_digest("hi", SETTINGS | {"system": "Be brief."}),
        question_digest("hi", SETTINGS | {"temperature": 0.7}),
    ]
    assert len(set(digests)) == len(digests)
    assert question_digest("hi", dict(reversed(SETTINGS.items()))) == digests[0]


def test_the_file_of_votes_holds_no_formula(store: Store) -> None:
    vote = a_vote(ended_run(store), prompt='=HYPERLINK("http://x.invalid")', answer_a="@SUM(A1)")
    store.votes.cast(vote)
    (row,) = csv.DictReader(io.StringIO(votes_csv(store.votes.of())))
    assert row["prompt"] == f"'{vote.prompt}"
    assert row["answer_a"] == f"'{vote.answer_a}"
    assert (row["answer_b"], row["better"], row["max_new_tokens"]) == ("Lisbon", "FP16", "256")


def test_answers_that_are_kept_for_the_deck_begin_anew_where_they_are_too_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_votes, "MOST_ANSWERS", 2)
    run_id = store.enqueue(RunConfig())
    for question in ("one", "two", "three"):
        store.votes.keep_answer(run_id, "INT2", question, Written(question, "stop"))
    kept = [store.votes.answer(run_id, "INT2", name) for name in ("one", "two", "three")]
    assert kept == [None, None, Written("three", "stop")]
