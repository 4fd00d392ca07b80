"""Answers are paired by the question that they answer, also where a column missed one."""

from __future__ import annotations

import re
from typing import Any

from ui.chat.keep import _histories
from ui.chat.render import Message, answers_by_turn, conversation
from ui.chat.render_words import word_view
from ui.chat.turn import before_turn
from upq.store import Answer, Exchange


def column(*said: tuple[int, str], finish: str = "stop") -> list[Message]:
    """Messages of a column: the numbers of its questions and what it answered."""
    messages: list[Message] = []
    for turn, text in said:
        messages.append({"role": "user", "content": f"question {turn}", "turn": turn})
        messages.append({"role": "assistant", "content": text, "finish": finish})
    return messages


def words(html: Any) -> str:
    return re.sub(r"<[^>]+>", " ", str(html))


def test_the_word_view_compares_answers_to_the_same_question() -> None:
    fp16 = column((1, "one alpha"), (2, "two alpha"), (3, "three alpha"))
    late = column((2, "two alpha"), (3, "three beta"))
    drawn = words(conversation("INT2", late, view="words", reference=fp16))
    assert "The same words as FP16." in drawn
    assert "The same as FP16 for 1 word" in drawn
    assert "one alpha" not in drawn


def test_an_answer_without_a_partner_is_shown_as_it_is() -> None:
    fp16 = column((1, "alpha"))
    drawn = words(conversation("INT4", column((2, "alpha")), view="words", reference=fp16))
    assert "FP16" not in drawn
    assert "alpha" in drawn
    failed = column((2, "It fell."), finish="failed")
    assert answers_by_turn(failed) == {}
    drawn = words(conversation("INT4", column((2, "alpha")), view="words", reference=failed))
    assert "FP16" not in drawn


def test_asking_anew_takes_only_the_last_turn_from_a_column() -> None:
    histories: Any = {"FP16": column((1, "a"), (2, "b")), "INT4": column((1, "a"))}
    assert before_turn(histories, 2) == {"FP16": column((1, "a")), "INT4": column((1, "a"))}


def test_a_kept_conversation_knows_which_question_each_column_answered() -> None:
    both: Any = {"FP16": Answer(content="a"), "INT2": Answer(content="b")}
    exchanges = [
        Exchange(question="first", answers={"FP16": Answer(content="a")}),
        Exchange(question="second", answers=both),
    ]
    histories = _histories(exchanges)
    assert [message.get("turn") for message in histories["FP16"]] == [1, None, 2, None]
    assert list(answers_by_turn(histories["INT2"])) == [2]


def test_an_answer_that_ends_where_they_part_is_said_to_end() -> None:
    drawn = words(word_view("INT2", "One, two, three", "One, two,"))
    assert "FP16 goes on" in drawn
    assert "INT2 ends here" in drawn
