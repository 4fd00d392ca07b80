"""Keys and values that float16 cannot hold go to an engine that can; the bound that decides it holds."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.support.engine_cases import generated, greedy, random_model, random_prompts
from tests.support.native_cases import quantized
from upq.decode import NativeEngine, TransformersEngine, engine_for, native
from upq.decode.cache_range import largest_cached

#: Heads of 16, which the C engine takes.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CPU = torch.device("cpu")


@torch.no_grad()
def with_large_values(model: Any) -> Any:
    """The model with norms that give 30,000 and matrices that make up for it, all but the one of the values."""
    for block in model.model.layers:
        block.input_layernorm.weight.fill_(3e4)
        for layer, size in (("q_proj", 1e-4), ("k_proj", 1e-4), ("o_proj", 1e-6)):
            getattr(block.self_attn, layer).weight.mul_(size)
    return model


@pytest.mark.parametrize("bits", [0, 4])
def test_values_beyond_float16_give_the_tokens_of_transformers(bits: int) -> None:
    model = with_large_values(random_model("llama", HEADS))
    (prompt,) = random_prompts(30)
    expected = generated(model, prompt, 12)
    assert "beyond the range of float16" in native.unsupported(model)
    engine = engine_for(quantized(model, bits, 32) if bits else copy.deepcopy(model), CPU)
    assert isinstance(engine, TransformersEngine)
    answer = greedy(engine.session(1, 64), 0, prompt, 12)
    assert bits or answer == expected
    assert engine.session(1, 64).prefill(0, prompt).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
    ],
)
@torch.no_grad()
def test_no_key_or_value_is_larger_than_the_bound(kind: str, settings: dict[str, Any]) -> None:
    model = random_model(kind, HEADS | settings)
    cache: Any = DynamicCache(config=model.config)
    model(input_ids=torch.tensor(random_prompts(200)), past_key_values=cache)
    largest = max(max(layer.keys.abs().max(), layer.values.abs().max()) for layer in cache.layers)
    assert largest.item() < largest_cached(model) < 20 * largest.item()
    assert isinstance(engine_for(model, CPU), NativeEngine)
