"""One turn of the chat: who waits for whom, who may stop whom, and what the model gets to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ui.chat import conversation_of
from ui.chat.render import Message
from ui.chat.turn import Turn, answer
from ui.html import PRECISIONS
from upq.decode import Decoding, Piece
from upq.errors import UserError


def a_turn(one_at_a_time: bool = False) -> Turn:
    return Turn(
        message="hi", system="", decoding=Decoding(), one_at_a_time=one_at_a_time, run_id=None
    )


def an_app(error: Exception) -> Any:
    """Return an app with a bundled model that cannot be loaded and no runs."""

    def get(*_: object) -> None:
        raise error

    store = SimpleNamespace(live_run=lambda: None, note=lambda _: None)
    return SimpleNamespace(
        models=SimpleNamespace(get=get), store=store, badges={}, context_run=lambda _: None
    )


def an_app_that_says(text: str) -> Any:
    """Return an app whose bundled model answers with a text, in one piece, and then is through."""
    pieces = [
        Piece(
            text=text,
            prompt_tokens=9,
            tokens=99,
            first_token_s=0.1,
            tokens_per_s=50.0,
            done=is_done,
            finish="length" if is_done else "",
        )
        for is_done in (False, True)
    ]
    app = an_app(RuntimeError())
    app.is_busy = lambda: False
    served = SimpleNamespace(
        answer=lambda *_: iter(pieces),
        size_bytes=1,
        memory_bytes=1,
        bits_per_weight=16.0,
        backend="native",
        load_s=0.1,
        note="",
    )
    app.models = SimpleNamespace(get=lambda *_: served)
    return app


def test_one_at_a_time_means_from_left_to_right() -> None:
    turn = a_turn(one_at_a_time=True)
    assert [turn.may_start(precision) for precision in PRECISIONS] == [True, False, False]
    turn.done["FP16"].set()
    assert [turn.may_start(precision) for precision in PRECISIONS] == [True, True, False]


def test_at_once_nobody_waits() -> None:
    assert all(a_turn().may_start(precision) for precision in PRECISIONS)


def test_a_column_answers_a_turn_only_once() -> None:
    turn = a_turn()
    assert turn.claim("INT4")
    assert not turn.claim("INT4")
    assert turn.claim("INT2")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("offline", "The hub did not answer.", "Go online."), "The hub did not answer."),
        (RuntimeError("secret path"), "This column stopped at an unexpected error (RuntimeError)."),
    ],
)
def test_a_failure_stays_in_its_column_and_ends_it(error: Exception, sentence: str) -> None:
    turn = a_turn()
    last = list(answer(an_app(error), turn, "FP16", None, []))[-1]
    assert last.over
    assert last.messages[-1]["content"] == sentence
    assert turn.done["FP16"].is_set()
    assert not turn.done["INT4"].is_set()


def test_a_column_without_an_artifact_is_done_at_once() -> None:
    turn = a_turn()
    assert list(answer(an_app(RuntimeError()), turn, "INT2", None, [])) == []
    assert turn.done["INT2"].is_set()


def test_a_page_that_closes_frees_the_columns_behind_it() -> None:
    turn = a_turn(one_at_a_time=True)
    pictures = answer(an_app(RuntimeError()), turn, "FP16", None, [])
    next(pictures)
    pictures.close()  # type: ignore[attr-defined]
    assert turn.may_start("INT4")


@pytest.mark.parametrize(
    ("text", "repeats"), [("I go on" + " and on" * 40, True), ("I go on, and end here.", False)]
)
def test_an_answer_is_known_to_end_in_a_loop_as_soon_as_it_is_whole(
    text: str, repeats: bool
) -> None:
    found = answer(an_app_that_says(text), a_turn(), "FP16", None, [])
    growing, whole = [progress.answer for progress in found if progress.answer]
    assert "repeats" not in growing
    assert whole.get("repeats") is repeats


def test_the_model_never_reads_a_failed_answer_or_its_question() -> None:
    messages: list[Message] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "broken", "finish": "failed"},
        {"role": "user", "content": "two"},
    ]
    assert conversation_of("be brief", messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two"},
    ]
    assert conversation_of("  ", messages[2:])[0]["role"] == "user"
