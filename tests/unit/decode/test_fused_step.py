"""The fused step of the GPU engine against transformers' forward, its kernels in Triton's interpreter."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import kernels
from kernels.gpu import decoding, hadamard
from kernels.gpu.attention import attention
from kernels.gpu.operators import TritonWeight
from kernels.packing import PackedWeight
from kernels.reference import TransformedWeight
from kernels.transform import Transform
from tests.support.native_cases import repacked, signed, signs, surrounded, two_levels
from upq.decode import TransformersEngine
from upq.decode.fused_step import FusedStep, Place, unsupported
from upq.decode.row_cache import bucket
from upq.decode.transformers_engine import RowSession
from upq.layers import PackedLinear

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
    check_step(TransformersEngine(model), [1, 70, 300])  # one block, several, several splits


def check_step(engine: TransformersEngine, lengths: list[int]) -> FusedStep:
    """Assert that a fused step gives the logits and the cache of transformers' forward."""
    session = RowSession(engine, rows=len(lengths), length=400)
    generator = torch.Generator().manual_seed(0)
    span = bucket(max(lengths) + 1)
    for row, length in enumerate(lengths):
        session.prefill(row, torch.randint(0, 97, (length,), generator=generator).tolist())
    session._reserve(400)
    inputs = torch.tensor([[5, 6, 7][: len(lengths)], lengths])
    session.cache.rows = None
    with torch.inference_mode():
        expected = session._forward(inputs, span)
        keys = [key.clone() for key in session.cache.keys]
        for layer, tensors in enumerate(session.cache.keys):
            for row, length in enumerate(lengths):
                tensors[row, :, length] = 0
                session.cache.values[layer][row, :, length] = 0
        step = FusedStep(engine.model)
        found = step(inputs[0], inputs[1], session.cache, span)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(session.cache.keys, keys, atol=1e-4, rtol=1e-4)
        again = session._forward(inputs, span)
    torch.testing.assert_close(again, expected, atol=0.0, rtol=0.0)  # of layers that are joined now
    return step


WIDE: dict[str, Any] = SIZES | {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_key_value_heads": 4,
}
WIDE |= {"num_attention_heads": 8, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("kind", "sizes", "transformed", "joined"),
    [
        ("none", WIDE, False, True),
        ("input", WIDE, True, True),
        ("both", WIDE, False, False),  # each layer with signs of its own
        ("lattice", WIDE, False, False),
        ("input", WIDE | {"num_key_value_heads": 1}, True, False),  # 16 outputs fill no tile
        ("input", WIDE | {"hidden_size": 136}, False, False),  # Hadamard blocks of 8
    ],
)
def test_packed_layers_are_joined_and_transformed_where_that_is_possible(
    kind: str,
    sizes: dict[str, Any],
    transformed: bool,
    joined: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "prepare", prepared_for_a_gpu)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    engine = TransformersEngine(surrounded(model, 4, kind, 8))
    attention = check_step(engine, [1, 20]).blocks[0].queries_keys_values
    assert (attention.transform is not None) == transformed
    assert (attention.whole is not None) == joined


def test_weights_with_scales_of_two_levels_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "prepare", prepared_for_a_gpu)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**WIDE)).eval()
    engine = TransformersEngine(repacked(model, two_levels, partial(signed, bits=8)))
    assert check_step(engine, [1, 20]).blocks[0].queries_keys_values.whole is not None


def prepared_for_a_gpu(packed: PackedWeight) -> kernels.Prepared:
    matrix = TritonWeight(replace(packed, transform=None))
    return TransformedWeight(matrix, packed.transform) if packed.transform else matrix


def test_a_rotated_block_is_four_products_and_kernels_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "prepare", prepared_for_a_gpu)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**WIDE)).half().eval()
    engine = TransformersEngine(surrounded(model, 2, "input", 16))
    session = RowSession(engine, rows=1, length=16)
    session.prefill(0, [1, 2, 3])
    block = FusedStep(engine.model).blocks[0]
    hidden, angles = torch.zeros(1, 128).half(), torch.ones(1, 16).half()
    place = Place(torch.tensor([3]), angles, angles, span=256)
    with torch.inference_mode(), Operators() as seen:
        block(hidden, hidden, place, session.cache.keys[0], session.cache.values[0])
    assert seen.names.count("upq::packed_matmul") == 4
    assert {name for name in seen.names if not name.startswith(MEMORY)} == {"upq::packed_matmul"}


#: Operators that give memory or a view, and those by which Triton's interpreter reads and writes tensors.
MEMORY = ("aten::empty", "aten::new_empty", "aten::split", "aten::view", "aten::reshape")
MEMORY += ("aten::_reshape_alias", "aten::copy_", "aten::set_")


class Operators(TorchDispatchMode):
    """The names of the operators that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_tuned_output_transform_follows_a_shared_input_transform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "prepare", prepared_for_a_gpu)
    torch.manual_seed(0)
    model = surrounded(LlamaForCausalLM(LlamaConfig(**WIDE)).eval(), 4, "input", 8)
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        layer = getattr(model.model.layers[0].self_attn, name)
        rows = layer.packed.shape[0]
        around = replace(layer.packed.transform, block_out=16, scale_out=signs(rows, number, 0.2))
        bias = torch.linspace(-1, 1, rows)
        packed = replace(layer.packed, transform=around)
        setattr(model.model.layers[0].self_attn, name, PackedLinear(packed, bias))
    block = check_step(TransformersEngine(model), [1, 20]).blocks[0]
    assert block.queries_keys_values.whole is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("block", "width"), [(16, 48), (64, 576), (128, 384), (256, 512)])
def test_activations_leave_their_kernels_transformed(
    block: int, width: int, dtype: torch.dtype
) -> None:
    around = Transform(block, scale_in=signs(width, 3, 0.1))
    transform = hadamard.input_transform(around, dtype, torch.device("cpu"))
    hidden, delta = torch.randn(2, 2, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.linspace(0.5, 1.5, width).to(dtype)
    total, normal = decoding.add_norm(hidden, delta, weight, 1e-5)
    again, turned = decoding.add_norm(hidden, delta, weight, 1e-5, transform)
    assert torch.equal(again, total)
    check_transformed(turned, normal, around)
    both = torch.cat([hidden, delta], dim=1)
    gates, up = both.split(width, dim=1)
    expected = decoding.gate(hidden, delta)
    assert torch.equal(decoding.gate(gates, up), expected)
    check_transformed(decoding.gate(gates, up, transform), expected, around)
    cache = torch.randn(2, 2, width // 16, 300, 16, generator=torch.Generator().manual_seed(1))
    keys, values = cache.to(dtype)
    given = (hidden, keys, values, torch.tensor([0, 270]), 300, 0.25)
    check_transformed(attention(*given, transform=transform), attention(*given), around)


def check_transformed(found: torch.Tensor, plain: torch.Tensor, around: Transform) -> None:
    """Assert that it is the definition's transform, but for the roundings of float16 where that is the type."""
    expected, _ = around.inputs(plain.double())
    error = (found.double() - expected).norm() / expected.norm()
    assert error < (1e-6 if found.dtype == torch.float32 else 6e-4)


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
