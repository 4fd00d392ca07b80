"""The panel beside the conversation, with stored models: what it reads, when it is empty, and how it fails."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.apps import whole_app
from tests.ui.test_chat_tab import answered, send
from tests.unit.jobs.test_served import stored_run
from ui import App
from ui.chat import compare
from ui.chat.compare import NEWEST, TOKEN_KL
from ui.chat.keep import FILES
from ui.chat.render_compare import WORSE
from ui.chat.turn import Turn
from ui.html import PRECISIONS
from upq.evaluation import instruction_types
from upq.models import load
from upq.store import Store

#: Numbers of turns that no other turn has.
NUMBERS = itertools.count(1_000_000)


@pytest.fixture(scope="module")
def talk(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[tuple[App, Turn]]:
    """An app, and two questions to a run of the tiny model, answered by all columns."""
    folder = tmp_path_factory.mktemp("panel")
    store = Store(folder / "upq.db")
    run_id = stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    app = whole_app(store, folder)
    first = answered(app, send(app, None, run_id, "Name a fruit without any commas."))
    yield app, answered(app, send(app, first, run_id, "Say <b>hello</b>. Use no commas."))
    store.close()


@pytest.fixture
def app(talk: tuple[App, Turn]) -> App:
    return talk[0]


@pytest.fixture
def turn(talk: tuple[App, Turn]) -> Turn:
    """The second turn, which each test may change; nothing is kept of it yet."""
    done = {precision: threading.Event() for precision in PRECISIONS}
    for event in done.values():
        event.set()
    histories = copy.deepcopy(talk[1].histories)
    return replace(talk[1], id=next(NUMBERS), histories=histories, done=done)


def read(
    app: App, turn: Turn | None, source: Any = "FP16", ago: int = NEWEST, view: str = TOKEN_KL
) -> list[str]:
    return [str(one) for one, *_ in compare._read(app, turn, view, ago, source, WORSE, "md")]


def offered(app: App, turn: Turn, ending: str) -> Path | None:
    """The file that is offered with the view."""
    *_, (_, take, file) = compare._read(app, turn, TOKEN_KL, NEWEST, "FP16", WORSE, ending)
    return Path(file["value"]) if take["visible"] else None


def test_the_view_says_that_models_read_and_then_what_they_think(app: App, turn: Turn) -> None:
    busy, view = read(app, turn)
    assert "The models read the answer." in busy
    assert 'data-by="worse"' in view
    assert "Say &lt;b&gt;hello&lt;/b&gt;." in view
    assert "INT2" in view
    assert read(app, turn) == [view]  # it is kept


def test_an_earlier_answer_and_that_of_another_model_can_be_read(app: App, turn: Turn) -> None:
    assert "Name a fruit" in read(app, turn, ago=1)[-1]
    assert "Tokens of INT2&#39;s answer" in read(app, turn, "INT2")[-1]
    assert "INT4 gave no answer here." in read(app, turn, "INT4", ago=2)[-1]


@pytest.mark.parametrize("ending", FILES)
def test_what_is_shown_can_be_taken_along(app: App, turn: Turn, ending: str) -> None:
    path = offered(app, turn, ending)
    assert path is not None
    assert path.suffix == f".{ending}"
    text = path.read_text(encoding="utf-8")
    assert "<b>hello</b>" in text or "&lt;b&gt;hello" in text
    assert "INT2" in text
    again = compare._write(app, turn, NEWEST, "FP16", "INT4", ending)
    assert Path(again["value"]).read_text(encoding="utf-8").count('data-by="int4"') == (
        ending == "html"
    )


def test_what_failed_or_was_never_read_is_no_file(app: App, turn: Turn) -> None:
    assert "value" not in compare._write(app, turn, NEWEST, "FP16", WORSE, "md")
    turn.histories["FP16"][-1]["finish"] = "failed"
    assert offered(app, turn, "md") is None


def test_another_view_no_turn_and_a_turn_at_work_show_nothing(app: App, turn: Turn) -> None:
    assert read(app, turn, view="text") == [""]
    assert read(app, None) == [""]
    turn.done["INT2"].clear()
    assert read(app, turn) == [""]


def test_a_column_that_missed_a_question_is_read_where_it_answered(app: App, turn: Turn) -> None:
    del turn.histories["INT2"][2:]  # it was asked the first question only
    assert "INT2 gave no answer here." in read(app, turn, "INT2")[-1]
    assert "Name a fruit" in read(app, turn, "INT2", ago=1)[-1]


def test_an_answer_is_read_with_the_settings_that_it_was_drawn_with(app: App, turn: Turn) -> None:
    turn.decoding = replace(turn.decoding, temperature=0.5)
    assert "drawn twice" in read(app, turn)[-1]
    assert "drawn twice" not in read(app, turn, ago=1)[-1]
    turn.id = next(NUMBERS)
    turn.decoding = replace(turn.decoding, repetition_penalty=1.2)
    penalised = read(app, turn)[-1]
    assert "drawn twice" not in penalised
    assert "how often two draws differ is not told" in penalised


def test_tokens_that_were_written_are_read_and_those_of_kept_text_only_where_they_are_gone(
    app: App, turn: Turn
) -> None:
    last: dict[str, Any] = turn.histories["FP16"][-1]  # type: ignore[assignment]
    ids = last["ids"]
    assert len(ids) == last["tokens"]
    assert f"token 1 of {len(ids)} " in read(app, turn)[-1]
    assert "made of the kept text anew" not in read(app, turn)[-1]
    del last["ids"]
    last["tokens"] += 1
    turn.id = next(NUMBERS)
    assert "made of the kept text anew" in read(app, turn)[-1]


def test_a_failed_answer_is_not_read(app: App, turn: Turn) -> None:
    turn.histories["FP16"][-1]["finish"] = "failed"
    assert "FP16 gave no answer here." in read(app, turn)[-1]


def test_fp16_alone_has_nobody_to_be_compared_with(app: App, turn: Turn) -> None:
    turn.models = {"FP16": turn.models["FP16"]}
    assert "neither INT4 nor INT2" in read(app, turn)[-1]


def test_an_error_is_said_in_the_panel(
    app: App, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(compare.compared, "read", fail)
    assert "unexpected error (RuntimeError)" in read(app, turn)[-1]


def test_instructions_of_the_chosen_question_are_judged(app: App, turn: Turn) -> None:
    if problem := instruction_types()["punctuation:no_comma"]:
        pytest.skip(problem)
    busy, newest = (str(one) for one in compare._judge(app, turn, NEWEST))
    assert "The answers are judged." in busy
    assert "Use no commas" in newest
    assert newest.count("verdict") == 3
    *_, first = compare._judge(app, turn, 1)
    assert "without any commas" in first
    assert [*compare._judge(app, None, NEWEST)] == [""]
    assert [*compare._judge(app, turn, 2)] == [""]


def test_choices_are_the_questions_and_the_models_of_the_turn(app: App, turn: Turn) -> None:
    choices = compare._choices(turn)
    assert choices["turn"]["choices"][0] == ("Say <b>hello</b>. Use no commas.", NEWEST)
    assert choices["turn"]["visible"]
    assert choices["by"]["choices"] == ["INT4", "INT2", WORSE]
    turn.models = {name: turn.models[name] for name in ("FP16", "INT2")}
    assert compare._choices(turn)["by"]["choices"] == ["INT2"]
    assert compare._choices(None) == {"view": "", "instructions": ""}
