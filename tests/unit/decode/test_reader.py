"""A reader reads what it does not hold, tells the rest again to the same bits, and is kept between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.support.readers import counted
from tests.unit.decode.test_engines import random_model as a_family
from tests.unit.decode.test_native import native_engine, prompt, quantized, random_model
from upq.decode import Decoding, LastReader, Reader, TransformersEngine, stream
from upq.decode.reader import STEP
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids

IDS = prompt(90)
TURNS = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "And at night?"},
]


def whole(engine: Any, ids: Sequence[int], wanted: int) -> torch.Tensor:
    """The logits of a session that has read nothing else."""
    return engine.session(1, len(ids)).extend(0, ids, wanted)


@pytest.fixture(scope="module")
def engine() -> Any:
    return native_engine(quantized(random_model("Llama"), 2, 32))


def test_only_what_is_new_is_read(engine: Any) -> None:
    reader = Reader(engine)
    counting = counted(reader)
    for ids, wanted, read in (
        (IDS[:40], 1, [40]),
        (IDS[:40], 30, []),
        (IDS, 60, [50]),
        (IDS[:20], 20, []),
        (IDS, 90, []),
        (IDS[:30] + IDS[50:], 50, [40]),
        (prompt(70, 9), 4, [70]),
    ):
        counting.clear()
        assert torch.equal(reader.logits(ids, wanted), whole(engine, ids, wanted))
        assert counting == read


def test_a_step_goes_behind_the_sequence_that_was_read_last(engine: Any) -> None:
    reader = Reader(engine)
    reader.logits(IDS[:40])
    reader.logits(IDS[:30])  # told again: the row still holds forty
    assert len(reader.held) == 40
    for end in (61, 62):
        ids = IDS[:30] + IDS[60:end]
        assert torch.equal(reader.step(IDS[end - 1]), whole(engine, ids, 1)[0])
        assert reader.held == ids


def test_a_step_beyond_the_room_reads_the_sequence_again(engine: Any) -> None:
    reader, ids = Reader(engine), prompt(150) * (1 + STEP // 150)
    reader.logits(ids[:STEP])
    assert torch.equal(reader.step(ids[STEP]), whole(engine, ids[: STEP + 1], 1)[0])


def test_more_room_forgets_what_was_held_and_changes_no_bit(engine: Any) -> None:
    reader = Reader(engine)
    reader.logits(IDS)
    reader.reserve(STEP)
    assert reader.held == IDS
    reader.reserve(STEP + 1)
    assert reader.held == []
    assert torch.equal(reader.logits(IDS), whole(engine, IDS, 1))


def test_where_there_is_no_memory_nothing_is_held_and_the_next_one_is_answered(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, session = LastReader(engine), engine.session

    def refusing(rows: int, length: int) -> Any:
        if length > STEP:
            raise UserError("out_of_memory", "There is no memory.")
        return session(rows, length)

    monkeypatch.setattr(engine, "session", refusing)
    with last.lent() as reader:
        reader.logits(IDS)
    with pytest.raises(UserError), last.lent() as reader:
        reader.logits(prompt(STEP + 1))
    with last.lent() as reader:
        assert torch.equal(reader.logits(IDS[:9]), whole(engine, IDS[:9], 1))
        assert torch.equal(reader.step(IDS[9]), whole(engine, IDS[:10], 1)[0])


def test_a_step_that_fails_leaves_the_row_as_it_was(engine: Any) -> None:
    reader = Reader(engine)
    reader.logits(IDS)
    with pytest.raises(IndexError):
        reader.step(-1)
    assert torch.equal(reader.logits(IDS), whole(engine, IDS, 1))
    assert torch.equal(reader.step(7), whole(engine, [*IDS, 7], 1)[0])


def test_engines_that_do_not_recall_read_again_what_is_wanted() -> None:
    reader = Reader(TransformersEngine(random_model("Llama")))
    counting = counted(reader)
    expected = reader.logits(IDS, 10)
    assert torch.equal(reader.logits(IDS, 10).argmax(-1), expected.argmax(-1))
    assert counting == [90, 10]


def test_one_at_a_time_has_what_was_read_last(engine: Any) -> None:
    last = LastReader(engine)
    with last.lent() as first:
        first.logits(IDS)
        with last.lent() as other:
            assert other is not first
            assert other.held == []

    def fail() -> None:
        with last.lent() as again:
            assert again is first
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with last.lent() as again:
        assert again is first, "an error loses nothing"


def test_nobody_but_its_owner_has_what_was_read(engine: Any) -> None:
    last = LastReader(engine)
    with last.lent("Ada") as reader:
        reader.logits(IDS)
    with last.lent("Ada") as reader:
        assert reader.held == IDS
    with last.lent("Bob") as reader:
        assert reader.held == []


def test_what_an_engine_gives_that_does_not_recall_never_depends_on_what_was_read() -> None:
    last = LastReader(TransformersEngine(random_model("Llama")))
    with last.lent() as reader:
        reader.logits(IDS)
    with last.lent() as reader:
        assert reader.held == []


def test_the_next_turn_reads_what_is_new_in_it_and_answers_the_same(tiny: LoadedModel) -> None:
    engine = native_engine(tiny.model)
    last, decoding = LastReader(engine), Decoding(max_new_tokens=24)

    def answer(reader: Reader, messages: list[dict[str, str]]) -> tuple[int, ...]:
        *_, piece = stream(reader, tiny.tokenizer, messages, decoding, lambda: False)
        return piece.ids

    with last.lent() as reader:
        first = answer(reader, TURNS[:1])
        asked = chat_ids(tiny.tokenizer, TURNS[:1])
        assert reader.held == [*asked, *first[:-1]]
    messages = [TURNS[0], TURNS[1] | {"content": tiny.tokenizer.decode(list(first))}, TURNS[2]]
    with last.lent() as reader:
        counting = counted(reader)
        found = answer(reader, messages)
        assert sum(counting) <= len(chat_ids(tiny.tokenizer, messages)) - len(asked)
    assert found == answer(Reader(engine), messages)
    with last.lent() as reader:
        counting = counted(reader)
        assert answer(reader, messages) == found
        assert counting == [], "the same question again reads nothing"


def test_a_state_that_cannot_be_rewound_is_not_read_again_for_each_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = TransformersEngine(a_family("mistral", {"sliding_window": 8}))
    assert not engine.by_rows
    reader, read, unspied = Reader(engine), [], engine.read

    def spy(ids: Sequence[int], *rest: Any) -> Any:
        read.append(len(ids))
        return unspied(ids, *rest)

    monkeypatch.setattr(engine, "read", spy)
    reader.logits([3] * 30)
    for token in (1, 2, 3):
        reader.step(token)
    assert read == [30, 1, 1, 1]
