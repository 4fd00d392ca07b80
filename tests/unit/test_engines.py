"""Engines over transformers: the tokens of `generate`, whatever a model keeps and however rows are mixed."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from upq.engines.row_cache import BUCKET
from upq.engines.torch_engine import PlainSession, RowSession, TransformersEngine
from upq.layers import memory_bytes
from upq.models import LoadedModel

VOCABULARY = 128
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
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


def random_model(kind: str, settings: dict[str, Any]) -> Any:
    options = dict(settings)
    attention = options.pop("attn_implementation", None)
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **options})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.float().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large enough that the logits are not flat
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    return model


def random_prompts(*lengths: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(3)
    return [
        torch.randint(2, VOCABULARY, (length,), generator=source).tolist() for length in lengths
    ]


def generated(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers decodes greedily."""
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()


def greedy(session: Any, row: int, prompt: Sequence[int], tokens: int) -> list[int]:
    """One answer, while the other rows rest."""
    answer = [int(session.prefill(row, prompt).argmax())]
    while len(answer) < tokens:
        answer.append(int(session.step([row], answer[-1:])[0].argmax()))
    return answer


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


def test_a_row_is_refilled_while_its_neighbours_go_on() -> None:
    engine = TransformersEngine(random_model("llama", {}))
    first, second, third = random_prompts(30, 12, 5)
    session = engine.session(2, 64)
    whole = greedy(engine.session(1, 64), 0, second, 12)
    answer = [int(session.prefill(1, second).argmax())]
    for other in (first, third):
        assert greedy(session, 0, other, 4) == greedy(engine.session(1, 64), 0, other, 4)
        for _ in range(5):
            answer.append(int(session.step([1], answer[-1:])[0].argmax()))
    assert answer == whole[: len(answer)]


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
