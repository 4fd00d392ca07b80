"""The fused step of the GPU engine against transformers' forward, its kernels in Triton's interpreter."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from kernels.gpu import decoding
from upq.decode import TransformersEngine
from upq.decode.fused_step import step, unsupported
from upq.decode.row_cache import BUCKET
from upq.decode.transformers_engine import RowSession

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,
}


def models() -> list[Any]:
    torch.manual_seed(0)
    made = [LlamaForCausalLM(LlamaConfig(**SIZES)), Qwen3ForCausalLM(Qwen3Config(**SIZES))]
    for one in made:
        for name, parameter in one.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return [one.eval() for one in made]


@pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)
def test_a_fused_step_gives_the_logits_and_the_cache_of_transformers(model: Any) -> None:
    session = RowSession(TransformersEngine(model), rows=3, length=400)
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 70, 300]  # one block, several, several splits
    for row, length in enumerate(lengths):
        session.prefill(row, torch.randint(0, 97, (length,), generator=generator).tolist())
    session._reserve(400)
    inputs = torch.tensor([[5, 6, 7], lengths])
    session.cache.rows = None
    with torch.inference_mode():
        expected = session._forward(inputs, 2 * BUCKET)
        keys = [key.clone() for key in session.cache.keys]
        for layer, tensors in enumerate(session.cache.keys):
            for row, length in enumerate(lengths):
                tensors[row, :, length] = 0
                session.cache.values[layer][row, :, length] = 0
        found = step(model, inputs[0], inputs[1], session.cache, 2 * BUCKET)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(session.cache.keys, keys, atol=1e-4, rtol=1e-4)


def test_in_half_precision_the_kernels_round_where_transformers_rounds() -> None:
    hidden, delta = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).half()
    weight = torch.linspace(0.5, 1.5, 40).half()
    total, normal = decoding.add_norm(hidden, delta, weight, 1e-5)
    assert torch.equal(total, hidden + delta)
    wide = total.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(normal, weight * (wide * inverse).half(), atol=0.0, rtol=1e-3)
    gated = decoding.gate(hidden, delta)
    expected = torch.nn.functional.silu(hidden) * delta
    torch.testing.assert_close(gated, expected, atol=1e-6, rtol=2e-3)


def test_what_cannot_be_fused_is_named() -> None:
    llama, qwen = models()
    assert unsupported(llama) == "it computes in float32"
    assert unsupported(llama.half()) == unsupported(qwen.bfloat16()) == ""
    odd = LlamaForCausalLM(LlamaConfig(**{**SIZES, "head_dim": 24})).half()
    assert unsupported(odd) == "attention heads of size 24"
    relu = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="relu")).half()
    assert unsupported(relu) == "activation relu"
    assert "is not one of" in unsupported(torch.nn.Linear(2, 2))
