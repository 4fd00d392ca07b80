"""The decoder in C against transformers: every model of the family, the real model on real prompts, any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.support.native_cases import in_plain_torch, quantized
from tests.unit.kernels.test_cpu_kernels import EXTRA_FLAGS, SETS
from upq.config import DataConfig
from upq.data import read_rows
from upq.decode import NativeEngine, engine_for, native
from upq.models import LoadedModel, chat_ids

SMALL = {
    "vocab_size": 150,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "attn_implementation": "eager",
}
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Llama": (LlamaForCausalLM, LlamaConfig, {**LLAMA, "num_key_value_heads": 2}),
    "Llama, biases, one key head": (
        LlamaForCausalLM,
        LlamaConfig,
        {**LLAMA, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "Llama, widths that are no multiple of 32, tied": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            **{"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 3},
            **{"num_key_value_heads": 3, "tie_word_embeddings": True},
        },
    ),
    "Llama 3 positions": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            **LLAMA,
            "num_key_value_heads": 4,
            "rope_parameters": {
                **{"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "Mistral, a window of 40": (
        MistralForCausalLM,
        MistralConfig,
        {**LLAMA, "num_key_value_heads": 2, "sliding_window": 40},
    ),
    "Qwen2, biases": (Qwen2ForCausalLM, Qwen2Config, {**LLAMA, "num_key_value_heads": 2}),
    "Qwen3, norms of queries and keys, large heads": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {**LLAMA, "num_key_value_heads": 2, "head_dim": 32},
    ),
    "twelve heads to one key head": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            **{"hidden_size": 192, "intermediate_size": 64, "num_attention_heads": 12},
            "num_key_value_heads": 1,
        },
    ),
}


def random_model(kind: str, **more: Any) -> Any:
    make, config, settings = MODELS[kind]
    torch.manual_seed(0)
    model = make(config(**{**SMALL, **settings, **more})).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        parameter.copy_(parameter.half().float())  # so that both engines have the same weights
    return model


def prompt(length: int, seed: int = 0, vocabulary: int = 150) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (length,), generator=generator).tolist()


class HalfCache(DynamicCache):
    """Keys and values in 16 bits, as the decoder in C keeps them."""

    def update(self, key_states: Any, value_states: Any, *rest: Any, **more: Any) -> Any:
        halves = key_states.half().float(), value_states.half().float()
        return super().update(*halves, *rest, **more)


@torch.inference_mode()
def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) by transformers."""
    cache = HalfCache(config=model.config)
    return model(torch.tensor([list(ids)]), past_key_values=cache).logits[0].float()


def native_engine(model: Any, name: str | None = None, threads: int = 2) -> NativeEngine:
    return NativeEngine(model, threads, name, extra_flags=EXTRA_FLAGS)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", MODELS)
def test_float_models_of_the_family_have_the_logits_of_transformers(kind: str, name: str) -> None:
    model = random_model(kind)
    ids = prompt(150)
    expected = logits_of(model, ids)
    session = native_engine(model, name).session(2, 160)
    first = session.prefill(1, ids[:140])
    rest = [session.step([1], [token])[0] for token in ids[140:]]
    found = torch.stack([first, *rest])
    assert (found - expected[139:]).abs().max() < 5e-3 * expected[139:].std()


def check_rounded_logits(model: Any) -> None:
    """The engine gives what torch gives on activations that are rounded as the engine rounds them."""
    ids = prompt(12)
    engine = native_engine(model)
    expected = logits_of(in_plain_torch(model, engine.span), ids)
    session = engine.session(1, 12)
    found = [session.prefill(0, ids[:1]), *(session.step([0], [token])[0] for token in ids[1:])]
    error = (torch.stack(found) - expected).norm(dim=-1) / expected.norm(dim=-1)
    # An activation just between two of its 255 values may be rounded to the other one; the rest is exact.
    assert error.min() < 1e-5
    assert error.max() < 0.05


def check_company(model: Any, name: str) -> None:
    """A row gets the same bits alone and with three others, on one, two and three threads."""
    prompts = [prompt(length, seed) for seed, length in enumerate((3, 130, 17, 1))]
    token = 7
    alone = []
    for ids in prompts:
        session = native_engine(model, name, threads=1).session(1, 160)
        alone.append((session.prefill(0, ids), session.step([0], [token])[0]))
    for threads in (2, 3):
        together = native_engine(model, name, threads).session(len(prompts), 160)
        for row, ids in enumerate(prompts):
            assert torch.equal(together.prefill(row, ids), alone[row][0])
        found = together.step(range(len(prompts)), [token] * len(prompts))
        assert all(torch.equal(one, two[1]) for one, two in zip(found, alone, strict=True))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_models_have_the_logits_of_torch_on_rounded_activations(
    kind: str, bits: int
) -> None:
    model = quantized(random_model(kind, num_hidden_layers=1), bits, 0)
    assert native.unsupported(model) == ""
    check_rounded_logits(model)


@pytest.mark.parametrize("bits", [2, 4, 16])
@pytest.mark.parametrize("name", SETS)
def test_a_row_gets_the_same_bits_in_any_company(name: str, bits: int) -> None:
    model = random_model("Llama")
    engine = native_engine(model if bits == 16 else quantized(model, bits, 32), name)
    prompts = [prompt(length, seed) for seed, length in enumerate((3, 130, 17, 1, 64, 33, 8))]
    steps = prompt(9, 99)
    alone = []
    for ids in prompts:
        session = engine.session(1, 160)
        alone.append([session.prefill(0, ids), *(session.step([0], [step])[0] for step in steps)])
    together = engine.session(len(prompts), 200)
    for row, ids in enumerate(prompts):
        assert torch.equal(together.prefill(row, ids), alone[row][0])
    rows = list(range(len(prompts)))
    for at, token in enumerate(steps, 1):
        found = together.step(rows, [token] * len(rows))
        assert all(torch.equal(found[row], alone[row][at]) for row in rows)
    # A row that is used again knows nothing of before, and its neighbours do not notice.
    assert torch.equal(together.prefill(1, prompts[0]), alone[0][0])
    again = together.step([1, 0], [steps[0], 5])
    assert torch.equal(again[0], alone[0][1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_but_time(threads: int) -> None:
    model = quantized(random_model("Llama"), 2, 32)
    ids = prompt(70)
    expected = native_engine(model, threads=1).session(1, 80).prefill(0, ids)
    assert torch.equal(
        native_engine(model, threads=threads).session(1, 80).prefill(0, ids), expected
    )


@pytest.mark.parametrize(
    ("ids", "row", "length"), [([150], 0, 8), ([-1], 0, 8), ([1] * 9, 0, 8), ([], 0, 8)]
)
def test_what_is_out_of_range_is_refused_before_anything_is_read(
    ids: list[int], row: int, length: int
) -> None:
    session = native_engine(random_model("Llama")).session(1, length)
    with pytest.raises(IndexError):
        session.prefill(row, ids)
    assert session.prefill(0, [1, 2]).isfinite().all()


def test_a_prefix_is_read_once_and_continued_to_the_same_bits() -> None:
    prefix, *endings = [prompt(length, length) for length in (40, 7, 30, 1)]
    engine = native_engine(quantized(random_model("Llama"), 4, 32))
    session = engine.session(2, 96)
    session.prefill(1, prefix)
    for ending in [*endings, endings[0]]:
        session.rewind(1, len(prefix))
        found = session.extend(1, ending, wanted=min(3, len(ending)))
        alone = engine.session(1, 96)
        alone.prefill(0, [5])
        alone.rewind(0, 0)
        assert torch.equal(found, alone.extend(0, prefix + ending, wanted=len(found)))
    with pytest.raises(ValueError, match="47 tokens cannot be rewound to 48"):
        session.rewind(1, 48)


@pytest.mark.parametrize("bits", [16, 4, 2])
def test_what_was_read_is_told_again_to_the_same_bits(bits: int) -> None:
    model = random_model("Llama")
    engine = native_engine(quantized(model, bits, 32) if bits < 16 else model)
    session, ids = engine.session(2, 200), prompt(150)
    expected = engine.session(1, 200).extend(0, ids, wanted=150)
    session.prefill(0, prompt(9, 5))
    session.prefill(1, ids[:60])
    for token in ids[60:80]:
        session.step([0, 1], [3, token])
    session.extend(1, ids[80:])
    assert torch.equal(session.recall(1, 0, 150), expected)
    assert torch.equal(session.recall(1, 70, 71), expected[70:71])
    session.rewind(1, 100)
    for first, last in ((90, 101), (-1, 4), (5, 5)):
        with pytest.raises(IndexError, match="A row of 100 tokens does not hold"):
            session.recall(1, first, last)


def test_a_session_is_full_at_its_length() -> None:
    session = native_engine(random_model("Llama")).session(1, 4)
    session.prefill(0, [1, 2, 3])
    session.step([0], [4])
    with pytest.raises(IndexError):
        session.step([0], [5])


def test_what_the_kernels_do_not_know_is_named() -> None:
    model = random_model("Llama")
    model.config.hidden_act = "gelu"
    assert native.unsupported(model) == "activation gelu"
    with pytest.raises(ValueError, match="activation gelu"):
        NativeEngine(model)
    assert not isinstance(engine_for(model), NativeEngine)
    model = random_model("Llama")
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    assert native.unsupported(model) == "weights beyond the range of float16"


def real_prompts(loaded: LoadedModel, count: int) -> list[list[int]]:
    _, rows = read_rows(DataConfig(held_out=count), seed=0)
    return [chat_ids(loaded.tokenizer, list(row.messages)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 4, 2])
def test_the_real_model_writes_the_tokens_of_torch_for_64_tokens_on_20_prompts(
    bundled: LoadedModel, bits: int
) -> None:
    model = bundled.model if bits == 16 else quantized(bundled.model, bits)
    prompts = real_prompts(bundled, 20)
    session = NativeEngine(model, exact=True).session(20, max(map(len, prompts)) + 64)
    answers = [[int(session.prefill(row, ids).argmax())] for row, ids in enumerate(prompts)]
    for _ in range(63):
        logits = session.step(range(20), [answer[-1] for answer in answers])
        for answer, token in zip(answers, logits.argmax(-1).tolist(), strict=True):
            answer.append(token)
    plain, others = in_plain_torch(model, 0), 0
    # Each token is the best one after those before it, so the whole answer is the greedy one.
    for ids, answer in zip(prompts, answers, strict=True):
        expected = logits_of(plain, [*ids, *answer])[len(ids) - 1 : -1]
        lost = expected.max(-1).values - expected.gather(1, torch.tensor(answer)[:, None])[:, 0]
        others += int((lost > 0).sum())
        assert lost.max() < 0.01, "not the best token, and no tie either"
    assert others <= 1, "of 1280 tokens"


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.01), (2, 0.1)])
def test_8_bit_activations_change_the_real_model_little(
    bundled: LoadedModel, bits: int, tolerance: float
) -> None:
    """Nats of KL to the same model without them; rounded to 2 bits untrained, it is a broken model that amplifies."""
    model = quantized(bundled.model, bits)
    divergence = []
    engines = NativeEngine(model), NativeEngine(model, exact=True)
    sessions = [engine.session(1, 200) for engine in engines]
    for ids in real_prompts(bundled, 10):
        rounded, exact = (
            torch.stack([one.prefill(0, ids), *(one.step([0], [t])[0] for t in ids)])
            for one in sessions
        )
        divergence.append(kl_div(rounded.log_softmax(-1), exact.log_softmax(-1)))
    mean = torch.cat(divergence).mean()
    assert 0 < mean < tolerance


def kl_div(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (theirs.exp() * (theirs - ours)).sum(-1)
