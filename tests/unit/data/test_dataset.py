"""Examples and batches: what the loss counts, what a plan covers, and that answers are made once."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import RecordingContext, Stop, stop_after, tiny_config
from upq import data
from upq.data import Example, collate, dataset, plan_batches
from upq.models import LoadedModel, chat_ids

lengths = st.lists(st.integers(2, 90), min_size=1, max_size=30)


def of_lengths(values: list[int]) -> list[Example]:
    return [Example(tuple(range(length)), 1) for length in values]


@given(
    values=lengths,
    total=st.integers(0, 2000),
    batch=st.integers(16, 300),
    seed=st.integers(0, 9),
)
def test_a_plan_is_a_pure_function_that_fills_its_tokens_and_keeps_its_batch_size(
    values: list[int], total: int, batch: int, seed: int
) -> None:
    examples = of_lengths(values)
    plan = plan_batches(examples, total, batch, seed)
    assert plan == plan_batches(tuple(examples), total, batch, seed)
    for rows in plan:
        padded = max(values[row] for row in rows) * len(rows)
        assert padded <= batch or len(rows) == 1
    tokens = [sum(values[row] for row in rows) for rows in plan]
    assert sum(tokens) >= total
    assert sum(tokens[:-1]) < max(total, 1)


@given(values=lengths, epochs=st.integers(1, 3), batch=st.integers(16, 300))
def test_every_pass_covers_every_example_once(values: list[int], epochs: int, batch: int) -> None:
    plan = plan_batches(of_lengths(values), epochs * sum(values), batch, 0)
    assert Counter(row for rows in plan for row in rows) == dict.fromkeys(
        range(len(values)), epochs
    )


def test_passes_and_seeds_are_shuffled_differently() -> None:
    examples = of_lengths([20] * 30)
    plan = plan_batches(examples, 2 * 600, 40, 0)
    assert plan[:15] != plan[15:]
    assert plan != plan_batches(examples, 2 * 600, 40, 1)


@given(values=lengths, seed=st.integers(0, 99))
def test_collate_marks_exactly_the_positions_that_predict_an_answer_token(
    values: list[int], seed: int
) -> None:
    starts = torch.Generator().manual_seed(seed)
    examples = [
        Example(tuple(range(100, 100 + n)), int(torch.randint(1, n, (), generator=starts)))
        for n in values
    ]
    batch = collate(examples)
    answers = [example.ids[example.counted_from :] for example in examples]
    assert batch.next_ids.tolist() == [token for answer in answers for token in answer]
    for row, one in enumerate(examples):
        length = len(one.ids)
        assert batch.ids[row, :length].tolist() == list(one.ids)
        assert batch.real[row].tolist() == [at < length for at in range(max(values))]
        counted = [one.counted_from - 1 <= at < length - 1 for at in range(max(values))]
        assert batch.counts[row].tolist() == counted
        assert sum(counted) == one.counted


def test_teacher_answers_are_made_once_and_then_taken_from_the_cache(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_model_dir)
    context = RecordingContext(tmp_path)
    first = data.build(config, tiny, context)
    assert len(context.saved_answers) == 2, "one batch held out, one for training"
    assert {example.counted for example in first.train} <= set(range(1, 9))

    monkeypatch.setattr(dataset, "answers", lambda *_, **__: pytest.fail("generated again"))
    again = data.build(config, tiny, context)
    assert again == first
    assert data.held_out(config, tiny, context) == first.held_out
    assert len(context.saved_answers) == 2


def test_a_run_that_trains_on_nothing_has_only_the_held_out_answers_written(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    context = RecordingContext(tmp_path)
    made = data.build(tiny_config(tiny_model_dir, "rtn"), tiny, context)
    assert made.train == []
    assert made.held_out
    assert len(context.saved_answers) == 1, "the held-out batch"


def test_another_seed_or_length_asks_the_teacher_again(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    context = RecordingContext(tmp_path)
    data.build(tiny_config(tiny_model_dir), tiny, context)
    data.build(tiny_config(tiny_model_dir, seed=1), tiny, context)
    data.build(tiny_config(tiny_model_dir, data__answer_tokens=9), tiny, context)
    assert len(set(context.saved_answers)) == 5  # the held-out answers do not depend on the last


def test_several_answers_to_a_prompt_are_different_draws(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_model_dir, data__answers_per_prompt=3, data__sequence_tokens=256)
    train = data.build(config, tiny, RecordingContext(tmp_path)).train
    assert len(train) == 18
    assert len(set(train)) > 12


def test_a_cancel_is_seen_while_the_teacher_answers(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        data.build(tiny_config(tiny_model_dir), tiny, RecordingContext(tmp_path, stop_after(4)))


def test_chat_rows_count_the_last_answer_only_and_need_no_teacher(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [
        [
            {"role": "user", "content": f"Hi {index}"},
            {"role": "assistant", "content": "First"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "Second"},
        ]
        for index in range(3)
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    context = RecordingContext(tmp_path / "run")
    config = tiny_config(
        tiny_model_dir, data__source="file", data__path=str(path),
        data__messages_column="messages", data__held_out=1, data__sequence_tokens=256,
    )  # fmt: skip
    built = data.build(config, tiny, context)
    assert len(context.saved_answers) == 1, "held-out answers are the model's own"
    for one in built.train:
        assert tiny.tokenizer.decode(list(one.ids[one.counted_from :])) == "Second<|im_end|>\n"
    held_out_prompt = built.held_out[0].ids[: built.held_out[0].counted_from]
    asked = {tuple(chat_ids(tiny.tokenizer, row[:-1])) for row in rows}
    assert held_out_prompt in asked
    trained = {example.ids[: example.counted_from] for example in built.train}
    assert trained == asked - {held_out_prompt}


def test_text_rows_count_every_token_but_the_first(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{n} bottles of milk"}) for n in range(4)))
    context = RecordingContext(tmp_path / "run")
    config = tiny_config(
        tiny_model_dir, data__source="file", data__path=str(path), data__held_out=1
    )
    built = data.build(config, tiny, context)
    assert not context.saved_answers
    for example in [*built.train, *built.held_out]:
        assert example.counted == len(example.ids) - 1
        assert str(tiny.tokenizer.decode(list(example.ids))).endswith(" bottles of milk")


def test_a_sequence_is_cut_and_one_without_room_for_its_answer_is_left_out(
    tiny: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a" * length, "answer": "b" * 50} for length in (1, 2, 3, 200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = tiny_config(
        tiny_model_dir, data__source="file", data__path=str(path), data__answer_column="answer",
        data__held_out=1, data__sequence_tokens=64, seed=0,
    )  # fmt: skip
    built = data.build(config, tiny, RecordingContext(tmp_path / "run"))
    assert len(built.train) == 2
    assert all(len(example.ids) == 64 for example in built.train)
