"""What a model cannot read whole loses its first turns, never the system prompt or the last question."""

from __future__ import annotations

from typing import Any

import pytest

from upq.decode import Decoding, Reader, engine_for, stream
from upq.decode.fitting import ANSWER_SHARE, fitted
from upq.models import LoadedModel, chat_ids

LIMIT = 512


def talk(turns: int, words: int = 20) -> list[dict[str, str]]:
    """A system prompt, so many turns with their answers, and a last question."""
    messages = [{"role": "system", "content": "be brief"}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{turn} " + "x" * words})
        messages.append({"role": "assistant", "content": "y" * words})
    return [*messages, {"role": "user", "content": "the last"}]


def without(messages: list[dict[str, str]], turns: int) -> list[dict[str, str]]:
    return [messages[0], *messages[1 + 2 * turns :]]


def test_what_fits_is_read_whole(tiny: LoadedModel) -> None:
    messages = talk(2)
    assert fitted(tiny.tokenizer, messages, LIMIT, 20) == (chat_ids(tiny.tokenizer, messages), 0)


@pytest.mark.parametrize("longest", [20, LIMIT])
def test_as_few_turns_as_possible_are_left_out(tiny: LoadedModel, longest: int) -> None:
    messages = talk(30)
    ids, left_out = fitted(tiny.tokenizer, messages, LIMIT, longest)
    room = LIMIT - min(longest, LIMIT // ANSWER_SHARE)
    assert 0 < left_out < 30
    assert ids == chat_ids(tiny.tokenizer, without(messages, left_out))
    assert len(ids) <= room
    assert len(chat_ids(tiny.tokenizer, without(messages, left_out - 1))) > room


def test_the_system_prompt_and_the_last_question_stay_however_long(tiny: LoadedModel) -> None:
    messages = [*talk(3)[:-1], {"role": "user", "content": "x" * 600}]
    ids, left_out = fitted(tiny.tokenizer, messages, LIMIT, 20)
    assert left_out == 3
    assert ids == chat_ids(tiny.tokenizer, without(messages, 3))
    assert fitted(tiny.tokenizer, messages[-1:], LIMIT, 20)[1] == 0


def test_an_answer_says_what_was_left_out(tiny: LoadedModel) -> None:
    engine: Any = engine_for(tiny.model)
    for turns, expected in ((30, True), (1, False)):
        *_, last = stream(
            Reader(engine), tiny.tokenizer, talk(turns), Decoding(max_new_tokens=4), lambda: False
        )
        assert (last.left_out > 0) is expected
        assert last.limit == LIMIT
        assert last.prompt_tokens + last.tokens <= LIMIT
