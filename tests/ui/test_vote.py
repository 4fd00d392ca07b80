"""The blind vote: nothing tells the models apart before the vote, a showing counts once, and nothing can hang it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tests.support.store_cases import claimed, small_artifact
from tests.ui.lab import Lab
from tests.ui.test_render import HOSTILE, Structure
from tests.unit.jobs.test_served import stored_run
from ui.app_state import App
from ui.chat import ballot as ballots
from ui.chat import render_vote, vote
from ui.chat.ballot import Ballot, Place
from ui.chat.vote import Vote
from ui.requests import Question
from ui.results.render_votes import votes_table
from upq.config import RunConfig
from upq.errors import UserError
from upq.evaluation import Tally, deck_cards
from upq.files import clean_text
from upq.jobs import Models
from upq.jobs.export_folder import Exports
from upq.models import load
from upq.store import Store, Written, open_store

SETTINGS = ("", 8, 0, 1, 0, 1)
WAIT_S = 60.0
NOTHING = gr.skip()
#: What would tell a model: names, sizes, speeds, counts of tokens, times and endings.
TELLTALE = re.compile(
    r"FP16|INT\d|int\d|fp16|[KM]B\b|tok/s|\d+ tokens?\b(?!<)|\d s\b|stopped|length"
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[App]:
    """An app with one finished run of a tiny model, without a page."""
    folder = tmp_path_factory.mktemp("vote")
    store = open_store(folder)
    stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    app = app_of(store, Models(store))
    yield app
    app.ahead.stop()
    assert store.doctor() == []
    store.close()


def app_of(store: Store, models: Any = None) -> App:
    supervisor: Any = SimpleNamespace(has_worker=True, trouble="")
    return App(store, models, supervisor, Path(), Exports(store, Path()))


def values(filled: list[Any]) -> dict[str, Any]:
    """What a handler changes, by name."""
    names = list(Vote.__dataclass_fields__)
    pairs = zip(names, filled, strict=True)
    return {name: value for name, value in pairs if not _is_skip(value)}


def _is_skip(value: Any) -> bool:
    return isinstance(value, dict) and value == NOTHING


def answered(app: App, filled: list[Any]) -> Ballot:
    """Wait for the answers to the ballot that a handler shows."""
    ballot = values(filled)["ballot"]
    deadline = time.monotonic() + WAIT_S
    for _ in vote._answers(app, ballot):
        assert time.monotonic() < deadline
    return ballot


def opened(app: App, *texts: str, settings: tuple[Any, ...] = SETTINGS) -> Ballot:
    """Open the view on a pair whose answers somebody has waited for before: by default two that differ."""
    ballot = ballots.next_of_deck(app, app.store.run(1), settings)
    assert ballot
    for asked, text in zip(ballot.asked, texts or ("Ann", "Bob"), strict=True):
        app.store.votes.keep_answer(1, asked.precision, asked.digest, Written(text, "stop"))
    return values(vote._open(app, "blind", None, 1, *settings))["ballot"]


def a_ballot(**changes: Any) -> Ballot:
    plain = Ballot(
        name="x",
        run_id=1,
        source="bundled",
        question=Question.at(["Who?", *SETTINGS]),
        seed=1,
        shown=("INT2", "FP16"),
        deck_id="fact-capital",
        place=Place(11, 40, 1, 3),
        written=(Written("Ann", "stop"), Written("Bob", "stop")),
    )
    return replace(plain, **changes)


def test_before_the_vote_nothing_tells_the_models_apart() -> None:
    long = Written("word " * 300, "length")
    for written in (
        None,
        (Written("Ann", "stop"), Written("Bob", "stop")),
        (long, Written("Bob", "stop")),
        (Written("", "stop"), long),
    ):
        drawn = str(render_vote.stage(a_ballot(written=written)))
        settings = render_vote.drawn_with(a_ballot())
        assert not TELLTALE.search(drawn.replace(settings, "")), drawn
    both = render_vote.stage(a_ballot(written=(long, long)))
    assert "Both were stopped at the token limit." in both


def test_a_swapped_pair_looks_the_same_until_the_vote() -> None:
    shown, swapped = a_ballot(), a_ballot(shown=("FP16", "INT2"))
    assert render_vote.stage(shown) == render_vote.stage(swapped)
    shown.choice = swapped.choice = "A"
    assert render_vote.stage(shown) != render_vote.stage(swapped)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("A", "A was INT2, B was FP16. You found INT2 better."),
        ("B", "A was INT2, B was FP16. You found FP16 better."),
        ("tie", "You found them alike."),
        ("bad", "You found both bad."),
        (
            "same",
            "Same answer: INT2 and FP16 wrote it word for word. Counted apart, without a vote.",
        ),
    ],
)
def test_after_the_vote_it_says_whose_answers_they_were(choice: Any, words: str) -> None:
    drawn = render_vote.stage(a_ballot(choice=choice))
    assert words in drawn
    assert "12 of 40 done \u00b7 round 1 of 3" in drawn
    assert 'data-key="1"' not in drawn
    assert 'aria-describedby="blind-reveal"' in drawn


def test_keys_one_to_four_are_buttons_with_words() -> None:
    drawn = str(render_vote.stage(a_ballot()))
    buttons = re.findall(r"<button[^>]*>.*?</button>", drawn)
    keys = [re.search(r'data-key="(\d)"', button) for button in buttons[:4]]
    assert [key and key[1] for key in keys] == ["1", "2", "3", "4"]
    assert all(re.search(r"</kbd>[A-Za-z ]{4,}</button>", button) for button in buttons[:4])


def test_what_people_and_models_wrote_is_no_markup() -> None:
    hostile = (Written(HOSTILE, "stop"), Written(HOSTILE + "!", "stop"))
    question = Question.at([HOSTILE, *SETTINGS])
    ballot = a_ballot(question=question, written=hostile, deck_id="", place=None)
    for choice in (None, "A"):
        drawn = render_vote.stage(replace(ballot, choice=choice))
        assert not {"img", "script", "form", "input"} & set(Structure(drawn).tags)
    failure = UserError("diverged", HOSTILE, HOSTILE)
    drawn = render_vote.stage(replace(ballot, written=None, failure=failure))
    assert not {"img", "script"} & set(Structure(drawn).tags)


def test_a_person_votes_through_the_deck_and_goes_on_after_a_reload(app: App) -> None:
    first = opened(app)
    assert first.place == Place(0, 40, 1, 3)
    changed = values(vote._act(app, "A", first, 1, SETTINGS))
    assert f"A was {first.shown[0]}, B was {first.shown[1]}" in changed["stage"]
    assert " v ".join(sorted(first.shown, key=("FP16", "INT4", "INT2").index)) in changed["tallies"]
    (kept,) = app.store.votes.of(1)
    assert (kept.deck_id, kept.choice, kept.better) == (first.deck_id, "A", first.shown[0])
    assert kept.prompt in {card.prompt for card in deck_cards()}
    assert first.written
    assert (kept.answer_a, kept.answer_b) == tuple(one.text for one in first.written)

    second = answered(app, vote._act(app, "next", first, 1, SETTINGS))
    assert second.place == Place(1, 40, 1, 3)
    assert second.deck_id != first.deck_id
    reloaded = opened(app)
    assert (reloaded.name, reloaded.shown) == (second.name, second.shown)
    assert opened(app, settings=("Be brief.", *SETTINGS[1:])).place == Place(0, 40, 1, 3)


def test_a_showing_counts_once_in_two_windows(app: App) -> None:
    one, other = opened(app), opened(app)
    before = len(app.store.votes.of(1))
    vote._act(app, "tie", one, 1, SETTINGS)
    assert values(vote._act(app, "B", one, 1, SETTINGS)) == {}, "a double click"
    late = values(vote._act(app, "B", other, 1, SETTINGS))["stage"]
    assert "voted on in another window already" in late
    assert [kept.choice for kept in app.store.votes.of(1)[before:]] == ["tie"]


def test_a_skipped_prompt_does_not_come_back_and_is_no_vote(app: App) -> None:
    ballot = opened(app)
    following = values(vote._act(app, "skip", ballot, 1, SETTINGS))["ballot"]
    assert following.name != ballot.name
    assert opened(app).name == following.name
    assert app.store.votes.of(1)[-1].choice == "skipped"


def test_equal_answers_are_counted_apart_and_nobody_is_asked(app: App) -> None:
    settings = ("equal", *SETTINGS[1:])
    ballot = opened(app, "Yes.", "Yes.\n", settings=settings)
    assert ballot.choice == "same"
    assert "Same answer" in render_vote.stage(ballot)
    assert values(vote._act(app, "A", ballot, 1, settings)) == {}
    assert app.store.votes.of(1)[-1].choice == "same"
    assert opened(app, settings=settings).name != ballot.name


def test_the_deck_is_answered_by_the_models_themselves(app: App) -> None:
    settings = ("", 12, 0, 1, 0, 1)
    ballot = answered(app, vote._open(app, "blind", None, 1, *settings))
    assert ballot.written
    for asked, written in zip(ballot.asked, ballot.written, strict=True):
        served = app.models.get(1, asked.precision, asked.source)
        *_, last = served.answer([{"role": "user", "content": asked.message}], asked.decoding)
        assert written == Written(clean_text(last.text), last.finish)


def test_a_persons_own_question_is_answered_by_two_and_leaves_the_deck_alone(app: App) -> None:
    deck = opened(app)
    own = answered(app, vote._ask(app, " Who are you? ", deck, 1, *SETTINGS))
    assert deck.abandoned
    assert own.question.message == "Who are you?"
    assert own.place is None
    assert "Your own question" in render_vote.stage(own)
    if not own.choice:
        vote._act(app, "B", own, 1, SETTINGS)
    kept = app.store.votes.of(1)[-1]
    assert (kept.deck_id, kept.prompt) == ("", "Who are you?")
    assert (kept.shown_a, kept.shown_b) == own.shown
    assert app.store.votes.answer(1, own.shown[0], own.asked[0].digest) is None, "not kept"
    assert values(vote._act(app, "next", own, 1, SETTINGS))["ballot"].name == deck.name


@pytest.mark.parametrize(
    ("message", "settings", "words"),
    [("  ", SETTINGS, "The message is empty."), ("hi", ("", 0, 0, 1, 0, 1), "max_tokens is 0")],
)
def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence(
    app: App, message: str, settings: tuple[Any, ...], words: str
) -> None:
    changed = values(vote._ask(app, message, None, 1, *settings))
    assert list(changed) == ["problem"]
    assert words in changed["problem"]


def test_settings_out_of_range_are_refused_in_a_sentence(app: App) -> None:
    changed = values(vote._open(app, "blind", None, 1, "", 0, 0, 1, 0, 1))
    assert "max_tokens is 0" in changed["stage"]
    assert changed["ballot"] is None


def test_leaving_the_view_ends_the_waiting_and_keeps_what_can_be_voted_on(app: App) -> None:
    waiting = a_ballot(written=None)
    changed = values(vote._open(app, "text", waiting, 1, *SETTINGS))
    assert waiting.abandoned
    assert changed["ballot"] is None
    ready = opened(app)
    assert values(vote._open(app, "text", ready, 1, *SETTINGS)) == {}
    assert values(vote._open(app, "blind", ready, 1, *SETTINGS)) == {}


def test_a_model_that_fails_is_said_and_can_be_skipped_or_tried_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise UserError("artifact_damaged", "The model is damaged.", "Make it again.")

    with monkeypatch.context() as patch:
        patch.setattr(app.models, "get", broken)
        ballot = answered(app, vote._ask(app, "Are you there?", None, 1, *SETTINGS))
        drawn = render_vote.stage(ballot)
        assert "The model is damaged." in drawn
        assert "data-key" not in drawn, "nothing to vote on"
        assert values(vote._act(app, "A", ballot, 1, SETTINGS)) == {}
    again = answered(app, vote._act(app, "again", ballot, 1, SETTINGS))
    assert again is ballot
    assert again.written


def test_a_run_that_is_deleted_meanwhile_takes_no_vote(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab.store)
    run_id = lab.done(RunConfig())
    ballot = a_ballot(run_id=run_id)
    lab.store.delete(run_id)
    changed = values(vote._act(app, "A", ballot, run_id, SETTINGS))
    assert f"There is no run {run_id}." in changed["stage"]
    assert not ballot.goes_on(app, run_id)
    assert "no two models" in values(vote._act(app, "next", ballot, run_id, SETTINGS))["stage"]
    lab.store.close()


def test_a_run_without_int2_has_one_pair_and_one_without_a_run_none(store: Store) -> None:
    app = app_of(store)
    empty = values(vote._open(app, "blind", None, 0, *SETTINGS))
    assert "There are no two models to compare yet." in empty["stage"]
    store.enqueue(RunConfig())
    run = claimed(store)
    store.lease(run).save_artifact(small_artifact())
    ballot = values(vote._open(app, "blind", None, run.id, *SETTINGS))["ballot"]
    assert set(ballot.shown) == {"FP16", "INT4"}
    assert ballot.place == Place(0, 40, 1, 1)
    assert "round" not in render_vote.stage(ballot)


def test_a_deck_that_is_through_says_so(store: Store) -> None:
    app = app_of(store)
    store.enqueue(RunConfig())
    run = claimed(store)
    store.lease(run).save_artifact(small_artifact())
    ballot = ballots.next_of_deck(app, run, SETTINGS)
    for _ in deck_cards():
        assert ballot
        ballot.vote(app, "bad")
        ballot = ballots.next_of_deck(app, run, SETTINGS)
    assert ballot is None
    said = values(vote._open(app, "blind", None, run.id, *SETTINGS))
    assert "You are through: 40 prompts, 1 round." in said["stage"]
    assert "too few" in said["tallies"]


def test_votes_are_drawn_in_results_with_what_they_show() -> None:
    tallies = {
        1: [Tally(("FP16", "INT4"), 10, 10), Tally(("FP16", "INT2"), 18, 2)],
        2: [Tally(("INT4", "INT2"), ties=3)],
    }
    drawn = votes_table({1: "#1 one", 2: HOSTILE}, tallies)
    for words in ("no difference shown", "FP16 was found better", "too few: 0 of 20", "90 %"):
        assert words in drawn
    assert "img" not in Structure(drawn).tags
    assert "No votes on these runs yet." in votes_table({1: "#1 one"}, {})
