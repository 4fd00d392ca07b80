"""Engines over transformers: the tokens of `generate`, whatever a model keeps and however rows are mixed."""

from typing import Any

import pytest
import torch

from tests.support.engine_cases import (
    VOCABULARY,
    check_neighbours,
    generated,
    greedy,
    random_model,
    random_prompts,
)
from upq.decode import TransformersEngine
from upq.decode.row_cache import BUCKET
from upq.decode.transformers_engine import PlainSession, RowSession
from upq.layers import memory_bytes
from upq.models import LoadedModel

ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
#: (model type, its settings, whether all rows are computed at once)
FAMILIES = [
    ("llama", {}, True),
    ("llama", {"attn_implementation": "eager"}, True),
    ("llama", {"rope_parameters": ROPE, "max_position_embeddings": 16}, False),
    ("qwen3", {"head_dim": 8}, True),
    ("mistral", {"sliding_window": None}, True),
    ("mistral", {"sliding_window": 8}, False),
    ("gemma3_text", {"head_dim": 8, "sliding_window": 8}, False),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    ("bloom", {"n_layer": 2, "n_head": 4}, False),
    ("bamba", {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1]}, False),
    ("mamba", {}, False),
    ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}, False),
]


@pytest.mark.parametrize(
    ("kind", "settings", "by_rows"), FAMILIES, ids=lambda value: str(value).replace(" ", "")
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_rows_of_any_length_get_the_tokens_of_transformers(
    kind: str, settings: dict[str, Any], by_rows: bool
) -> None:
    model = random_model(kind, settings)
    prompts = random_prompts(3, 21, 9)
    engine = TransformersEngine(model)
    assert engine.by_rows == by_rows
    session = engine.session(3, 64)
    answers = [[int(session.prefill(row, ids).argmax())] for row, ids in enumerate(prompts)]
    for turn in range(11):
        # In order, in another order, and some while the others rest.
        rows = [[0, 1, 2], [2, 0, 1], [1], [2, 0]][turn % 4]
        logits = session.step(rows, [answers[row][-1] for row in rows])
        assert logits.shape == (len(rows), VOCABULARY)
        assert logits.dtype == torch.float32
        for row, one in zip(rows, logits, strict=True):
            answers[row].append(int(one.argmax()))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer == generated(model, prompt, len(answer))


@pytest.mark.parametrize(
    ("kind", "settings", "by_rows"), FAMILIES, ids=lambda value: str(value).replace(" ", "")
)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_prefix_is_read_once_and_continued_many_times(
    kind: str, settings: dict[str, Any], by_rows: bool
) -> None:
    model = random_model(kind, settings)
    prefix, *endings = random_prompts(20, 5, 9, 1)
    session = TransformersEngine(model).session(2, 64)
    session.prefill(0, prefix)
    for ending in [*endings, endings[0]]:
        session.rewind(0, len(prefix))
        found = session.extend(0, ending, wanted=len(ending))
        ids = torch.tensor([prefix + ending])
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0, len(prefix) :].float()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert greedy_from(session, 0, found[-1], 6) == generated(model, prefix + endings[0], 6)
    with pytest.raises(ValueError, match="cannot be rewound to 99"):
        session.rewind(0, 99)


def greedy_from(session: Any, row: int, logits: torch.Tensor, tokens: int) -> list[int]:
    answer = [int(logits.argmax())]
    while len(answer) < tokens:
        answer.append(int(session.step([row], answer[-1:])[0].argmax()))
    return answer


def test_a_row_is_refilled_while_its_neighbours_go_on() -> None:
    check_neighbours(random_model("llama", {}))


def test_the_cache_grows_with_the_conversation() -> None:
    model = random_model("llama", {})
    (prompt,) = random_prompts(BUCKET - 4)
    session = TransformersEngine(model).session(2, BUCKET + 60)
    assert isinstance(session, RowSession)
    short = [int(session.prefill(1, prompt[:5]).argmax())]
    assert greedy(session, 0, prompt, 12) == generated(model, prompt, 12)
    assert BUCKET < session.cache.capacity <= 2 * BUCKET
    short.append(int(session.step([1], short)[0].argmax()))
    assert short == generated(model, prompt[:5], 2), "what was there stays"


def test_a_row_takes_its_length_and_no_more() -> None:
    session = TransformersEngine(random_model("llama", {})).session(1, 8)
    session.prefill(0, [5] * 7)
    session.step([0], [6])
    with pytest.raises(ValueError, match="9 tokens do not fit into a row of 8"):
        session.step([0], [7])
    with pytest.raises(ValueError, match="9 tokens"):
        session.prefill(0, [5] * 9)


@pytest.mark.parametrize(("kind", "kept"), [("llama", RowSession), ("mamba", PlainSession)])
def test_sessions_of_one_engine_are_independent(kind: str, kept: type) -> None:
    engine = TransformersEngine(random_model(kind, {}))
    first, second = random_prompts(6, 9)
    one, two = engine.session(1, 32), engine.session(1, 32)
    assert isinstance(one, kept)
    begun = [int(one.prefill(0, first).argmax())]
    assert greedy(two, 0, second, 6) == greedy(engine.session(1, 32), 0, second, 6)
    begun.append(int(one.step([0], begun)[0].argmax()))
    assert begun == greedy(engine.session(1, 32), 0, first, 2)


def test_an_engine_says_what_computes_and_what_it_takes(tiny: LoadedModel) -> None:
    engine = TransformersEngine(tiny.model)
    assert engine.backend == "transformers, torch float32"
    assert engine.memory_bytes == memory_bytes(tiny.model) > 0
    assert engine.device == torch.device("cpu")
    assert engine.config is tiny.model.config
