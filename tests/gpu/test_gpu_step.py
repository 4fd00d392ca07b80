"""The fused step of the Llama family on an NVIDIA GPU; run by `make gpu-check`."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.native_cases import repacked, signed, surrounded, two_levels
from upq.decode import TransformersEngine, engine_for
from upq.decode.transformers_engine import RowSession

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "lengths", [[1], pytest.param([3, 200, 700, 1500], marks=pytest.mark.slow)], ids=str
)
def test_replayed_fused_steps_give_the_logits_of_transformers(
    dtype: torch.dtype, lengths: list[int]
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model: Any = LlamaForCausalLM(config)
    check_step(TransformersEngine(model.to("cuda", dtype).eval()), lengths)


@pytest.mark.parametrize("kind", ["none", "input", pytest.param("both", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replayed_steps_over_joined_and_transformed_weights_give_them_too(
    bits: int, kind: str
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = surrounded(LlamaForCausalLM(config).eval(), bits, kind)
    engine = engine_for(model, torch.device("cuda"))
    assert isinstance(engine, TransformersEngine)
    assert engine.fused_step is not None
    attention = engine.fused_step.blocks[0].queries_keys_values
    assert (attention.transform is not None) == (kind == "input")
    assert (attention.whole is not None) == (kind != "both")
    check_step(engine, [3, 20], turns=3)


@pytest.mark.slow
def test_replayed_steps_over_scales_of_two_levels_give_them_too() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    packed = repacked(LlamaForCausalLM(config).eval(), two_levels, partial(signed, bits=8))
    engine = engine_for(packed, torch.device("cuda"))
    assert isinstance(engine, TransformersEngine)
    assert engine.fused_step is not None
    assert engine.fused_step.blocks[0].queries_keys_values.whole is not None
    check_step(engine, [3, 20], turns=3)


def check_step(engine: TransformersEngine, lengths: list[int], turns: int = 6) -> None:
    """Assert that fused steps, of which the first two are not replayed, give the logits of transformers' forward."""
    assert engine.fused_step is not None
    fused = engine.session(len(lengths), 2048)
    plain = RowSession(engine, len(lengths), 2048)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate(lengths):
        prompt = torch.randint(0, 500, (length,), generator=generator).tolist()
        torch.testing.assert_close(fused.prefill(row, prompt), plain.prefill(row, prompt))
    rows = list(range(len(lengths)))
    for turn in range(turns):
        tokens = [(7 * turn + row) % 500 for row in rows]
        found = fused.step(rows, tokens)
        positions = torch.tensor(plain.lengths, device="cuda")
        with torch.inference_mode():
            plain._reserve(max(plain.lengths) + 1)
            inputs = torch.stack([torch.tensor(tokens, device="cuda"), positions])
            expected = plain._forward(inputs, max(plain.lengths) + 1)
        plain.lengths = [length + 1 for length in plain.lengths]
        error = (found - expected).norm() / expected.norm()
        assert error < 0.02, turn


@pytest.mark.slow
def test_a_fused_step_repeats_to_the_last_bit() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model: Any = LlamaForCausalLM(config)
    engine = TransformersEngine(model.to("cuda", torch.bfloat16).eval())
    answers = []
    for _ in range(2):
        session = engine.session(2, 600)
        for row in range(2):
            session.prefill(row, list(range(1, 300 + row)))
        answers.append([session.step([0, 1], [turn, turn + 1]) for turn in range(5)])
    for first, second in zip(*answers, strict=True):
        assert torch.equal(first, second)
