"""Conversations that are kept: found, gone on with in two windows, bounded, and never believed when they are read."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from tests.support.store_cases import Clock
from upq.errors import UserError
from upq.store import Answer, Author, Content, Exchange, Store, conversations

FP16, INT2 = Author(model="tiny", bits_per_weight=16.0), Author(model="tiny", bits_per_weight=2.3)
DAMAGE = {
    "turns": "UPDATE conversations SET turns = ? WHERE id = ?",
    "models": "UPDATE conversations SET models = ? WHERE id = ?",
}
HALF = "half of a character: \ud83d"


def exchange(question: str = "why?", answer: str = "because") -> Exchange:
    reply = Answer(content=answer, finish="stop", tokens=3, prompt_tokens=9)
    decoding = {"max_new_tokens": 64, "temperature": 0.5, "seed": 7}
    return Exchange(
        question=question,
        system="be brief",
        decoding=decoding,
        answers={"FP16": reply, "INT2": reply},
    )


def content(*exchanges: Exchange, run_id: int | None = 3) -> Content:
    return Content(
        run_id=run_id,
        authors={"FP16": FP16, "INT2": INT2},
        exchanges=list(exchanges or [exchange()]),
    )


def refusal(store: Store, number: int) -> UserError:
    with pytest.raises(UserError) as caught:
        store.conversations.get(number)
    return caught.value


def test_a_conversation_comes_back_as_it_was_and_outlives_its_run(store: Store) -> None:
    said = content(exchange("one", "a\tb\r\n <b>ü 漢 🙂 \x07"), exchange("two", ""))
    place = store.conversations.save(said)
    kept = store.conversations.get(place.id)
    assert (kept.content, kept.place) == (said, place)
    assert (kept.head.title, kept.head.run_id) == ("one", 3), "there never was a run 3"


def test_going_on_rewrites_the_one_row_and_moves_it_to_the_top(store: Store, clock: Clock) -> None:
    first = store.conversations.save(content(exchange("one")))
    clock.now += 1
    second = store.conversations.save(content(exchange("two")))
    assert [line.id for line in store.conversations.find().lines] == [second.id, first.id]
    clock.now += 1
    again = store.conversations.save(content(exchange("one"), exchange("three")), first)
    assert again == (first.id, 2)
    lines = store.conversations.find().lines
    assert [line.id for line in lines] == [first.id, second.id]
    assert lines[0].updated_at - lines[0].created_at == 2


def test_two_windows_never_write_over_each_other(store: Store) -> None:
    place = store.conversations.save(content(exchange("one")))
    left = store.conversations.save(content(exchange("one"), exchange("left")), place)
    right = store.conversations.save(content(exchange("one"), exchange("right")), place)
    assert left.id == place.id != right.id
    kept = [store.conversations.get(at.id).content.exchanges[-1].question for at in (left, right)]
    assert kept == ["left", "right"]
    store.conversations.delete(left.id)
    assert store.conversations.save(content(), left).id not in (left.id, right.id)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {1, 2, 3}),
        ("  RAYLEIGH  ", {1}),
        ("straße", {2}),
        ("STRASSE", {2}),
        ("100%", {3}),
        ("100_", set()),
        ("a\\b", {3}),
        ('"quoted"', {3}),
        ("content", set()),
        ("renamed", {1}),
    ],
)
def test_a_search_finds_titles_questions_and_answers(
    store: Store, text: str, expected: set[int]
) -> None:
    store.conversations.save(content(exchange("sky", "Rayleigh scattering")))
    store.conversations.save(content(exchange("Straße?", "yes")))
    store.conversations.save(content(exchange("other", 'it is 100% "quoted" a\\b')))
    store.conversations.rename(1, "  Renamed\nby hand ")
    found = store.conversations.find(text)
    assert {line.id for line in found.lines} == expected
    assert found.total == len(expected)
    assert store.conversations.get(1).head.title == "Renamed by hand"


def test_a_list_is_cut_and_says_how_many_there_are(store: Store) -> None:
    for _ in range(5):
        store.conversations.save(content())
    found = store.conversations.find("why", limit=2)
    assert ([line.id for line in found.lines], found.total) == ([5, 4], 5)


def test_everybody_has_conversations_of_their_own(store: Store) -> None:
    mine = store.conversations.save(content(), owner="a")
    theirs = store.conversations.save(content(), owner="b")
    assert [line.id for line in store.conversations.find(owner="a").lines] == [mine.id]
    for act in (store.conversations.get, store.conversations.delete):
        with pytest.raises(UserError, match=f"no conversation {theirs.id}"):
            act(theirs.id, "a")
    assert store.conversations.save(content(), theirs, owner="a").id not in (mine.id, theirs.id)
    assert store.conversations.delete_all("a") == 2
    assert store.conversations.get(theirs.id, "b")


def test_at_the_bound_the_oldest_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations.Conversations, "most_kept", 3)
    other = store.conversations.save(content(), owner="b")
    places = [store.conversations.save(content()) for _ in range(3)]
    store.conversations.save(content(), places[0])
    newest = store.conversations.save(content())
    kept = [line.id for line in store.conversations.find().lines]
    assert kept == [newest.id, places[2].id, places[1].id]
    assert store.conversations.get(other.id, "b")


def test_a_conversation_that_is_too_long_is_refused_and_the_row_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store.conversations.save(content())
    monkeypatch.setattr(conversations, "MOST_CHARACTERS", 500)
    with pytest.raises(UserError, match="at most 500 are kept"):
        store.conversations.save(content(exchange(answer="x" * 500)), place)
    assert store.conversations.get(place.id).content == content()


def test_titles_are_short_and_halves_of_characters_do_not_end_anything(store: Store) -> None:
    place = store.conversations.save(content(exchange("word " * 40, HALF)))
    kept = store.conversations.get(place.id)
    assert kept.head.title == "word " * 15 + "word\u2026"
    assert kept.content.exchanges[0].answers["FP16"].content == "half of a character: ?"
    with pytest.raises(UserError, match="title is empty"):
        store.conversations.rename(place.id, " \x00 ")


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("turns", "[", "Expecting value"),
        ("turns", "[]", "at least 1 item"),
        ("turns", "{}", "list"),
        ("turns", "[" * 100_000, "recursion"),
        ("turns", '[{"question": 3, "answers": {}}]', "0.question"),
        ("turns", '[{"question": "", "answers": {"INT3": {"content": ""}}}]', "0.answers"),
        (
            "turns",
            '[{"question": "", "answers": {"INT2": {"content": "", "tokens": -1}}}]',
            "tokens",
        ),
        ("turns", '[{"question": "", "answers": {}, "decoding": {"seed": "1"}}]', "decoding.seed"),
        ("models", '{"INT2": {"model": "m", "bits_per_weight": NaN}}', "INT2.bits_per_weight"),
    ],
)
def test_a_damaged_row_is_one_sentence_and_hides_no_other(
    tmp_path: Path, column: str, value: str, named: str
) -> None:
    store = Store(tmp_path / "upq.db")
    bad, good = (store.conversations.save(content()) for _ in "12")
    with sqlite3.connect(tmp_path / "upq.db") as raw:
        raw.execute(DAMAGE[column], [value, bad.id])
    raw.close()
    error = refusal(store, bad.id)
    assert error.code == "conversation_damaged"
    assert named in error.message
    assert "\n" not in error.message
    assert store.doctor() == [error.message]
    assert len(store.conversations.find().lines) == 2
    assert store.conversations.get(good.id).content == content()
    store.conversations.delete(bad.id)
    assert store.doctor() == []
    store.close()


@pytest.mark.parametrize("number", [0, -1, 4, 2**63, 2**70])
def test_a_number_that_nothing_has_is_refused(store: Store, number: int) -> None:
    assert refusal(store, number).code == "conversation_not_found"


def test_what_a_later_version_wrote_beside_it_is_left_out(store: Store, tmp_path: Path) -> None:
    place = store.conversations.save(content())
    with sqlite3.connect(tmp_path / "upq.db") as raw:
        raw.execute("UPDATE conversations SET turns = json_set(turns, '$[0].mood', 'good')")
    raw.close()
    assert store.conversations.get(place.id).content == content()


def test_two_million_words_are_searched_in_a_moment(store: Store) -> None:
    """1,000 conversations, a fifth of the most: in under a fifth of a second of processor time."""
    long = exchange(answer=" ".join(["the quick brown fox"] * 100))
    with store._connections.write() as db:
        db.execute(
            "INSERT INTO conversations (title, created_at, updated_at, models, turns, words)"
            " WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
            " SELECT 'fox', i, i, '{}', '[]', ? || i FROM n",
            [long.answers["FP16"].content * 5],
        )
    started = time.process_time()
    assert [line.id for line in store.conversations.find("the fox777").lines] == []
    assert [line.id for line in store.conversations.find("fox777").lines] == [777]
    assert time.process_time() - started < 0.4
    store.conversations.delete_all()
