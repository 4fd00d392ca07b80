"""What becomes of a conversation: kept, gone on with, opened again, its run gone, deleted, taken along."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
import pytest

from tests.support.conversations import content, conversation, exchange
from tests.ui.test_chat_tab import answered, asked_of, send
from tests.unit.jobs.test_served import stored_run
from ui import App
from ui.chat import columns, history, keep, questions
from ui.chat.composer import AT_ONCE
from ui.chat.render import Message
from ui.chat.tab import _start_over, _take_up
from ui.chat.turn import Turn
from ui.header import NO_RUN
from ui.html import PRECISIONS, Precision
from upq.decode import Decoding
from upq.errors import UserError
from upq.models import LoadedModel
from upq.store import connections

FORM = (AT_ONCE, "be brief", 12, 0.5, 1, 7, 1)


@pytest.fixture
def run_id(app: App, tiny: LoadedModel, tiny_model_dir: Path) -> int:
    """Store a run of the tiny model with both artifacts."""
    return stored_run(app.store, tiny, tiny_model_dir)


def reopened(app: App, turn: Turn, chosen: int | None = None) -> tuple[Turn, int | None]:
    assert turn.thread.place
    kept = app.store.conversations.get(turn.thread.place.id)
    return keep.opened(app, kept, chosen)


def said_in(turn: Turn) -> dict[Precision, list[Message]]:
    """What stands in the columns, without what is as usual, and without tokens, which are not kept."""
    usual: list[tuple[str, Any]] = [("repeats", False), ("left_out", 0), ("limit", 0), ("hint", "")]
    return {
        name: [
            cast(
                Message,
                {
                    key: value
                    for key, value in one.items()
                    if key != "ids" and (key, value) not in usual
                },
            )
            for one in messages
        ]
        for name, messages in turn.histories.items()
    }


def asked(app: App, before: Turn, run_id: int, text: str, act: Any = questions.send) -> Turn:
    """Ask with settings of its own, by Send or Again, and wait for the answers."""
    extra = [None] if act is questions.send else []
    values = act(app, before, run_id, *extra, text, *FORM)
    assert isinstance(values[0], Turn)
    return answered(app, values[0])


def test_a_conversation_is_one_row_that_every_turn_writes_anew(app: App, run_id: int) -> None:
    turn = answered(app, send(app, None, run_id, "one"))
    first = turn.thread.place
    turn = asked(app, turn, run_id, "two")
    (line,) = app.store.conversations.find().lines
    assert first is not None
    assert (line.id, line.title, line.run_id) == (first.id, "one", run_id)
    kept = app.store.conversations.get(line.id)
    assert [one.question for one in kept.content.exchanges] == ["one", "two"]
    last = kept.content.exchanges[-1]
    assert (last.system, last.decoding["seed"]) == ("be brief", 7)
    assert list(last.answers) == list(PRECISIONS)
    for name, answer in last.answers.items():
        assert answer.content == turn.histories[name][-1]["content"]
    authors, method = kept.content.authors, app.store.run(run_id).method
    assert [authors[name].method for name in PRECISIONS] == ["", method, method]
    assert authors["INT2"].bits_per_weight < authors["FP16"].bits_per_weight


def test_again_takes_the_place_of_the_last_question(app: App, run_id: int) -> None:
    turn = asked(app, answered(app, send(app, None, run_id, "one")), run_id, "two")
    again = asked(app, turn, run_id, "two", questions.again)
    kept = app.store.conversations.get(1).content.exchanges
    assert [one.question for one in kept] == ["one", "two"]
    assert kept[-1].decoding["seed"] == again.decoding.seed == 8
    assert app.store.conversations.find().total == 1


def test_a_page_that_closes_in_the_middle_keeps_what_was_said(app: App, run_id: int) -> None:
    turn = send(app, None, run_id, "one")
    stream: Any = columns.stream(app, "INT2", turn)
    for _ in stream:
        if turn.answers.get("INT2", {}).get("content"):
            break
    stream.close()
    (kept,) = app.store.conversations.get(1).content.exchanges
    assert kept.answers["INT2"].content == turn.answers["INT2"]["content"]
    assert set(kept.answers) == {"INT2"}


def test_an_opened_conversation_goes_on_where_it_ended(app: App, run_id: int) -> None:
    before = asked(app, answered(app, send(app, None, run_id, "one")), run_id, "two")
    turn, choice = reopened(app, before)
    assert (choice, turn.is_over, turn.is_gone) == (run_id, True, False)
    assert (turn.system, turn.decoding) == (before.system, before.decoding)
    assert said_in(turn) == said_in(before)
    after = asked(app, turn, run_id, "three")
    assert asked_of(after) == [["one", "two", "three"]] * 3
    kept = app.store.conversations.get(1).content.exchanges
    assert [one.question for one in kept] == ["one", "two", "three"]
    assert app.store.conversations.find().total == 1


def test_what_is_opened_is_drawn_in_every_column_and_replaces_what_was_there(
    app: App, run_id: int
) -> None:
    other = send(app, None, run_id, "in the middle")
    turn, choice = reopened(app, answered(app, send(app, None, run_id, "one")))
    change = _take_up(app, other, turn, choice, "text")
    assert other.abandoned
    assert [">one<" in change.columns[name]["past"] for name in PRECISIONS] == [True] * 3
    assert (change.turn, change.over) == (turn, turn.id)


def test_without_its_run_it_can_be_read_but_not_gone_on_with(
    app: App, run_id: int, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    other = stored_run(app.store, tiny, tiny_model_dir)
    before = answered(app, send(app, None, run_id, "one"))
    app.store.delete(run_id)
    turn, choice = reopened(app, before, chosen=other)
    assert (choice, turn.is_gone) == (other, True)
    assert said_in(turn) == said_in(before)
    fields = vars(questions.Sent(*questions.send(app, turn, other, None, "two", *FORM)))
    assert "can be read but not gone on with" in fields["problem"]
    assert fields["turn"] == gr.skip()
    assert app.store.conversations.get(1).content.run_id == run_id
    new = _start_over(app, turn, other)
    assert new.turn is None


def test_the_bundled_model_alone_is_chosen_for_a_conversation_with_it(app: App) -> None:
    place = app.store.conversations.save(content(run_id=None))
    _, choice = keep.opened(app, app.store.conversations.get(place.id), 5)
    assert choice == NO_RUN


def test_settings_that_are_none_are_one_sentence(app: App) -> None:
    bad = exchange("one").model_copy(update={"decoding": {"temperature": 77.0}})
    place = app.store.conversations.save(content(bad, run_id=None))
    with pytest.raises(UserError, match="temperature is 77"):
        keep.opened(app, app.store.conversations.get(place.id), None)
    known = exchange("one").model_copy(update={"decoding": {"seed": 3, "mood": 1}})
    place = app.store.conversations.save(content(known, run_id=None))
    turn, _ = keep.opened(app, app.store.conversations.get(place.id), None)
    assert turn.decoding == Decoding(seed=3)


def test_a_store_that_cannot_be_written_to_says_so_and_the_chat_goes_on(
    app: App, run_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.05)
    first = answered(app, send(app, None, run_id, "one"))
    app.store.close()  # connections that are open have the longer timeout
    other = sqlite3.connect(tmp_path / "upq.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    turn = answered(app, send(app, first, run_id, "two"))
    opened, note, *_ = history._now_open(app, turn, "md")
    assert opened == 1
    assert "This conversation is not kept: The database was busy" in note
    other.execute("ROLLBACK")
    other.close()
    turn = answered(app, send(app, turn, run_id, "three"))
    assert turn.thread.trouble is None
    kept = app.store.conversations.get(1).content.exchanges
    assert [one.question for one in kept] == ["one", "two", "three"], "nothing is lost"


def test_what_is_deleted_on_its_own_page_is_not_kept_again(app: App, run_id: int) -> None:
    turn = send(app, answered(app, send(app, None, run_id, "one")), run_id, "two")
    app.store.conversations.delete(1)
    turn.thread.is_deleted = True
    answered(app, turn)
    assert app.store.conversations.find().total == 0


def clicked(app: App, **data: Any) -> list[Any]:
    event: Any = SimpleNamespace(_data=data)
    return history._act(app, event, history.LINES)


def test_the_buttons_of_the_list_do_what_they_say(app: App) -> None:
    first, second = (app.store.conversations.save(content()).id for _ in "12")
    note, wanted, deleted, limit = clicked(app, action="open", number=str(first))
    assert (note, wanted[0], deleted, limit) == ("", first, gr.skip(), history.LINES)
    clicked(app, action="rename", number=str(first), title="<b>new</b>")
    drawn = history._listed(app, "NEW", history.LINES, first)
    assert "&lt;b&gt;new&lt;/b&gt;" in drawn
    assert "run #3, deleted · open now" in drawn
    assert clicked(app, action="delete", number=str(second))[2][0] == second
    assert "no conversation" in clicked(app, action="delete", number=str(second))[0]
    assert "title is empty" in clicked(app, action="rename", number=str(first), title=" ")[0]
    assert clicked(app, action="more")[3] == 2 * history.LINES
    note, _, deleted, _ = clicked(app, action="clear")
    assert "One conversation is deleted." in note
    assert deleted[0] == history.ALL
    assert "No conversation yet." in history._listed(app, "", history.LINES, None)


@pytest.mark.parametrize("number", ["", "x", "-1", "9" * 30, None, {"path": "/etc/passwd"}])
def test_a_click_that_nobody_made_changes_nothing(app: App, number: Any) -> None:
    app.store.conversations.save(content())
    for action in ("delete", "rename", "", "drop"):
        clicked(app, action=action, number=number, title="x")
    assert [line.title for line in app.store.conversations.find().lines] == ["why?"]


@pytest.mark.parametrize("ending", keep.FILES)
def test_a_conversation_leaves_as_a_file(app: App, ending: str) -> None:
    kept = conversation(exchange("one"), exchange("two"))
    whole = keep.write_file(app.export_dir, kept, ending)
    alone = keep.write_file(app.export_dir, kept, ending, 2)
    assert (whole.name, alone.name) == (
        f"upq-conversation-12.{ending}",
        f"upq-conversation-12-question-2.{ending}",
    )
    assert len(alone.read_bytes()) < len(whole.read_bytes())
