"""The chat's handlers with stored models: which run a message goes to, when columns start over, what is timed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from tests.support.helpers import tiny_config
from tests.unit.jobs.test_served import stored_run
from ui import App, app_state
from ui.app_state import speed_note
from ui.chat import column, columns, questions, speeds
from ui.chat.columns import Pane, stream
from ui.chat.composer import AT_ONCE, IN_TURN, SEND, STOP
from ui.chat.questions import Sent
from ui.chat.tab import Change, Chat, _settled, _show
from ui.chat.turn import TIMED_TOKENS, Turn, models_behind
from ui.header import NO_RUN
from ui.html import PRECISIONS, Precision
from upq.decode import Decoding
from upq.jobs import ModelKey, answering, model_key, served, turns
from upq.models import LoadedModel, load

LONGEST = 40
#: What the page sends with a message: mode, system prompt, longest answer, temperature, top-p, seed, penalty.
GREEDY = (AT_ONCE, "", LONGEST, 0, 1, 0, 1)
DRAWN = (AT_ONCE, "", LONGEST, 0.9, 1, 3, 1)


@pytest.fixture
def run(app: App, tiny: LoadedModel, tiny_model_dir: Path) -> int:
    """Store one run of the tiny model with both artifacts."""
    return stored_run(app.store, tiny, tiny_model_dir)


@pytest.fixture
def runs(app: App, tiny: LoadedModel, tiny_model_dir: Path) -> tuple[int, int]:
    """Store two runs of the tiny model, each with both artifacts."""
    return stored_run(app.store, tiny, tiny_model_dir), stored_run(app.store, tiny, tiny_model_dir)


def send(app: App, before: Turn | None, run_id: int | None, text: str, mode: str = AT_ONCE) -> Turn:
    turn, *_ = questions.send(app, before, run_id, None, text, mode, *GREEDY[1:])
    assert isinstance(turn, Turn)
    return turn


def answered(app: App, turn: Turn) -> Turn:
    for precision in PRECISIONS:
        for _ in stream(app, precision, turn):
            pass
    assert turn.is_over
    return turn


def asked_of(turn: Turn) -> list[list[str]]:
    """Return what each column was asked."""
    return [
        [message["content"] for message in turn.histories[precision] if message["role"] == "user"]
        for precision in PRECISIONS
    ]


def test_a_change_reaches_the_components_that_it_names_and_no_other() -> None:
    components = ("head", "past", "now", "stop")
    panes: Any = {
        name: SimpleNamespace(outputs=[f"{name} {component}" for component in components])
        for name in PRECISIONS
    }
    box: Any = SimpleNamespace(send="send", examples="examples", problem="problem")
    states: Any = ("turn", "asked", "over", "draft", "announced")
    everything = Chat(panes, box, *states).everything
    change = Change({"INT4": {"past": "new"}}, turn=None)
    found = dict(zip(everything, change.values, strict=True))
    assert {name for name, value in found.items() if value != gr.skip()} == {"INT4 past", "turn"}
    assert (found["INT4 past"], found["turn"]) == ("new", None)
    with pytest.raises(TypeError, match="Pane has no boddy"):
        Pane.fill(boddy="new")


def test_a_message_right_after_the_choice_of_a_run_survives_the_reset_of_the_columns(
    app: App, runs: tuple[int, int]
) -> None:
    first, second = runs
    old = send(app, None, first, "one")
    new = send(app, old, second, "two")
    assert old.abandoned
    assert {name for column in _show(app, new, second).columns.values() for name in column} == {
        "head"
    }
    assert not new.abandoned
    assert asked_of(answered(app, new)) == [["two"]] * 3


def test_columns_start_over_when_another_run_is_chosen(app: App, runs: tuple[int, int]) -> None:
    first, second = runs
    old = answered(app, send(app, None, first, "one"))
    assert asked_of(answered(app, send(app, old, first, "two"))) == [["one", "two"]] * 3
    change = _show(app, old, second)
    assert ["Ask something." in column["past"] for column in change.columns.values()] == [True] * 3
    assert change.send["value"] == SEND
    assert change.turn is None
    assert old.abandoned


def test_a_screen_reader_is_told_once_that_models_are_loaded(app: App, run: int) -> None:
    def asked(before: Turn | None) -> tuple[Turn, Any]:
        values = questions.send(app, before, run, None, "one", *GREEDY)
        sent = vars(questions.Sent(*values))
        return sent["turn"], sent["announced"]

    turn, announced = asked(None)
    assert announced == "Loading FP16, INT4, INT2."
    drawn = "".join(str(values) for values in stream(app, "INT4", turn))
    assert "Loading the model." in drawn
    assert "role=" not in drawn, "the columns themselves say nothing"
    assert "role=" not in "".join(map(str, columns.at_rest(app, None, run).values()))
    turn.stop_all()
    for precision in ("FP16", "INT2"):
        list(stream(app, precision, turn))
    _, announced = asked(turn)
    assert announced == gr.skip()


def test_a_second_message_waits_for_the_first(app: App, runs: tuple[int, int]) -> None:
    turn = send(app, None, runs[0], "one")
    assert (
        questions.send(app, turn, runs[0], None, "two", AT_ONCE, "", LONGEST, 0, 1, 0)
        == Sent.fill()
    )


def test_what_an_abandoned_answer_drew_last_is_wiped(app: App, runs: tuple[int, int]) -> None:
    turn = send(app, None, runs[0], "one")
    turn.abandon()
    list(stream(app, "INT4", turn))
    assert "INT4" not in turn.histories
    drawn = "".join(map(str, _settled(app, "INT4", None, runs[0])))
    assert drawn.count("Ask something.") == 3


def test_a_conversation_with_fp16_goes_on_when_its_run_has_packed_models() -> None:
    fp16, other = ModelKey("FP16", source="bundled"), ModelKey("FP16", source="other")
    turn = Turn(
        message="hi",
        system="",
        decoding=Decoding(),
        one_at_a_time=False,
        run_id=None,
        models={"FP16": fp16},
    )
    packed: dict[Precision, ModelKey] = {"INT4": ModelKey("INT4", 1), "INT2": ModelKey("INT2", 1)}
    assert turn.goes_on_with({"FP16": fp16, **packed})
    assert not turn.goes_on_with({"FP16": other, **packed})
    assert turn.occupies("FP16")
    assert not turn.occupies("INT4")


@pytest.fixture
def revisions(
    app: App, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str | None, int]:
    """Queue a run of each of two revisions of one source, and one of its default revision."""
    monkeypatch.setattr(served.loading, "load", lambda source, *, revision=None: load(source))
    return {
        name: app.store.enqueue(tiny_config(tiny_model_dir, model__revision=name))
        for name in ("v1", "v2", None)
    }


def test_fp16_of_two_revisions_shares_no_badge(app: App, revisions: dict[str | None, int]) -> None:
    answered(app, send(app, None, revisions["v1"], "hello", IN_TURN))
    assert "backend" in column(app, "FP16", revisions["v1"]).badge
    assert column(app, "FP16", revisions["v2"]).badge == {}
    assert column(app, "FP16", revisions[None]).badge == {}


def test_fp16_of_two_revisions_shares_no_conversation(
    app: App, revisions: dict[str | None, int]
) -> None:
    first, second = revisions["v1"], revisions["v2"]
    turn = answered(app, send(app, None, first, "one"))
    assert turn.goes_on_with(models_behind(app, first))
    assert not turn.goes_on_with(models_behind(app, second))
    new = answered(app, send(app, turn, second, "two"))
    assert [message["content"] for message in new.histories["FP16"]][:1] == ["two"]


def test_a_revision_is_named_in_the_note_of_a_speed_where_there_is_one(
    app: App, revisions: dict[str | None, int]
) -> None:
    def name(run_id: int | None, precision: str) -> str:
        return speed_note(model_key(app.store, run_id, precision, "bundled"))

    run_id = revisions[None]
    assert name(run_id, "FP16") == name(None, "FP16")
    assert name(run_id, "FP16").endswith(": FP16 bundled")
    assert name(run_id, "INT4").endswith(f": INT4 {run_id}")
    assert name(revisions["v1"], "FP16") != name(run_id, "FP16")


def test_fair_and_shared_timings_stand_beside_each_other(app: App, runs: tuple[int, int]) -> None:
    run_id = runs[0]
    alone = answered(app, send(app, None, run_id, "hello", IN_TURN))
    first = column(app, "INT2", run_id)
    assert "fair" in first.badge
    assert "shared" not in first.badge
    last_answer = alone.histories["INT2"][-1]
    note = app.store.note(speed_note(first.key))
    assert (note is not None) == (last_answer.get("tokens", 0) >= TIMED_TOKENS)
    answered(app, send(app, alone, run_id, "again", AT_ONCE))
    then = column(app, "INT2", run_id)
    assert then.badge.get("fair") == first.badge.get("fair")
    assert "shared" in then.badge


def test_no_timing_is_fair_while_a_run_is_at_work(
    app: App, runs: tuple[int, int], tiny_model_dir: Path
) -> None:
    app.store.enqueue(tiny_config(tiny_model_dir))
    assert app.store.claim("cpu@here:1", 1, 60.0)
    answered(app, send(app, None, runs[0], "hello", IN_TURN))
    badge = column(app, "INT4", runs[0]).badge
    assert "shared" in badge
    assert "fair" not in badge


def changed(values: list[Any]) -> dict[str, Any]:
    """Return what a handler changes, by the names of Sent."""
    pairs = zip(Sent.__dataclass_fields__, values, strict=True)
    return {name: value for name, value in pairs if value != gr.skip()}


def test_an_example_is_asked_and_the_draft_stays(app: App, run: int) -> None:
    found = changed(questions.example(app, "Why?", None, run, "my draft", *GREEDY))
    assert found["turn"].message == "Why?"
    assert "message" not in found
    assert "draft" not in found


def test_the_one_button_does_what_it_said_when_it_was_pressed(app: App, run: int) -> None:
    turn = send(app, None, run, "one")
    values = (turn, run, None, "two", *GREEDY)
    assert questions.press(app, STOP, *values) == Sent.fill()
    assert all(event.is_set() for event in turn.stop.values())
    answered(app, turn)
    assert questions.press(app, STOP, *values) == Sent.fill(), "a late Stop asks nothing"
    assert changed(questions.press(app, SEND, *values))["turn"].message == "two"


def test_the_last_question_is_edited_in_its_place_and_the_draft_comes_back(
    app: App, run: int
) -> None:
    turn = answered(app, send(app, None, run, "one"))
    turn = answered(app, send(app, turn, run, "two"))
    editing = changed(questions.edit(turn, None, "a draft"))
    assert (editing["message"], editing["draft"]) == ("two", "a draft")
    twice = changed(questions.edit(turn, "a draft", "two, changed"))
    assert twice["draft"] == "a draft", "what waits is not lost by a second press"
    kept = changed(questions.keep("a draft"))
    assert (kept["message"], kept["draft"]) == ("a draft", None)
    sent = changed(questions.send(app, turn, run, "a draft", "three", *GREEDY))
    assert (sent["message"], sent["draft"]) == ("a draft", None)
    assert asked_of(answered(app, sent["turn"])) == [["one", "three"]] * 3
    assert asked_of(turn) == [["one", "two"]] * 3


def test_a_refused_edit_keeps_the_question_and_the_draft(app: App, run: int) -> None:
    turn = answered(app, send(app, None, run, "one"))
    found = changed(questions.send(app, turn, run, "a draft", "  ", *GREEDY))
    assert found.keys() == {"problem"}
    assert "empty" in found["problem"]


def test_again_asks_the_same_with_the_next_seed_where_answers_are_drawn(app: App, run: int) -> None:
    greedy = answered(app, send(app, None, run, "one"))
    found = changed(questions.again(app, greedy, run, "a draft", *GREEDY))
    assert (found["turn"].message, found["seed"], found["turn"].decoding.seed) == ("one", 0, 0)
    assert "message" not in found
    assert asked_of(answered(app, found["turn"])) == [["one"]] * 3
    drawn = changed(questions.send(app, None, run, None, "one", *DRAWN))["turn"]
    assert questions.again(app, drawn, run, "", *DRAWN) == Sent.fill(), "it is not over yet"
    answered(app, drawn)
    found = changed(questions.again(app, drawn, run, "", *DRAWN))
    assert (found["seed"], found["turn"].decoding.seed) == (4, 4)
    mine = (*DRAWN[:-2], 77, 1)
    assert changed(questions.again(app, drawn, run, "", *mine))["seed"] == 77


def test_the_app_times_each_model_alone_once_the_answers_are_there(
    app: App, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "PAUSE_S", 0.0)
    for name in ("is_busy", "others_compute"):  # they do, where tests run side by side
        monkeypatch.setattr(speeds, name, lambda: False)
    monkeypatch.setattr(served, "TIMED_TOKENS", 8)  # the tiny model soon ends
    turn = answered(app, send(app, None, run, "one"))
    assert "fair" not in column(app, "INT2", run).badge
    speeds.measure(app, turn).join(60)
    rates = [
        column(app, precision, run).badge.get("fair", {}).get("tokens_per_s", 0)
        for precision in PRECISIONS
    ]
    assert min(rates) > 0
    assert app.timed == len(PRECISIONS)
    speeds.measure(app, turn).join(60)
    assert app.timed == len(PRECISIONS), "once is enough"
    app.badges.clear()
    assert column(app, "INT2", run).badge.get("fair") == {"tokens_per_s": rates[-1]}
    monkeypatch.setattr(app_state, "this_machine", lambda: "another one")
    assert "fair" not in column(app, "INT2", run).badge


@pytest.mark.parametrize("reason", ["an answer", "a run", "another program"])
def test_no_model_is_timed_while_somebody_needs_the_machine(
    app: App,
    run: int,
    reason: str,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speeds, "PAUSE_S", 0.0)
    monkeypatch.setattr(speeds, "TRIES", 2)
    monkeypatch.setattr(speeds, "BUSY_PERCENT", -1.0 if reason == "another program" else 101.0)
    monkeypatch.setattr(speeds, "LOOK_S", 0.1)
    quiet = reason == "another program"
    monkeypatch.setattr(speeds, "is_busy", (lambda: False) if quiet else turns.is_busy)
    turn = answered(app, send(app, None, run, "one"))
    if reason == "a run":
        app.store.enqueue(tiny_config(tiny_model_dir))
        assert app.store.claim("cpu@here:1", 1, 60.0)
        speeds.measure(app, turn).join(60)
    else:
        with answering() if reason == "an answer" else nullcontext():
            speeds.measure(app, turn).join(60)
    assert app.timed == 0


def test_the_head_of_a_column_forgets_an_earlier_run_when_fp16_alone_is_chosen(
    app: App, run: int
) -> None:
    turn = answered(app, send(app, None, run, "one"))
    assert (
        "native" in _show(app, turn, run).columns["INT4"]["head"]
        or "torch" in (_show(app, turn, run).columns["INT4"]["head"])
    )
    head = _show(app, turn, NO_RUN).columns["INT4"]["head"]
    assert "not there yet" in head
    assert " bit" not in head
