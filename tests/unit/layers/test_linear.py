"""The two forms of a quantized linear, and swapping them into a model."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels.reference import weight_of
from kernels.transform import Transform
from tests.support.grids import GRIDS
from tests.support.helpers import naive_weight
from upq.layers import (
    INT2,
    INT4,
    INT8,
    FakeQuantLinear,
    Grid,
    Latent,
    PackedEmbedding,
    PackedLinear,
    fake_quant_layers,
    memory_bytes,
    packed_layers,
    swap_linears,
)
from upq.models import LoadedModel, place

grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def training_form(grid: Grid, bias: bool) -> FakeQuantLinear:
    torch.manual_seed(0)
    linear = nn.Linear(32, 12, bias=bias)
    latent = Latent(linear.weight, *grid.fit(linear.weight, 8))
    return FakeQuantLinear(latent, linear.bias, grid)


@grids
@pytest.mark.parametrize("bias", [True, False])
def test_the_packed_form_computes_what_its_codes_stand_for(grid: Grid, bias: bool) -> None:
    layer = training_form(grid, bias)
    packed = PackedLinear(layer.pack(), layer.bias)
    inputs = torch.randn(2, 5, 32)
    expected = F.linear(inputs, naive_weight(packed.packed), layer.bias)
    torch.testing.assert_close(packed(inputs), expected)
    torch.testing.assert_close(layer(inputs), expected)


@grids
def test_the_packed_form_keeps_the_dtype_of_its_inputs(grid: Grid) -> None:
    layer = training_form(grid, bias=True)
    inputs = torch.randn(3, 32).bfloat16()
    assert PackedLinear(layer.pack(), layer.bias)(inputs).dtype == torch.bfloat16


def test_weight_scale_and_inputs_get_gradients_and_the_bias_none() -> None:
    layer = training_form(INT2, bias=True)
    inputs = torch.randn(4, 32, requires_grad=True)
    layer(inputs).square().sum().backward()
    for tensor in (layer.weight, layer.log_scale, inputs):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert layer.bias is not None
    assert layer.bias.grad is None


def test_packed_int2_takes_exactly_two_bits_per_weight() -> None:
    layer = training_form(INT2, bias=False)
    packed = PackedLinear(layer.pack())
    assert packed.codes.nbytes * 8 == 2 * 12 * 32
    assert memory_bytes(packed) == 2 * 12 * 32 // 8 + 12 * 4 * 2
    assert "bits=2" in repr(packed)


def test_zeros_and_a_transform_are_buffers_that_no_placing_rounds() -> None:
    torch.manual_seed(0)
    plain = training_form(INT2, bias=False).pack()
    around = Transform(16, 4, torch.rand(32), torch.rand(12), torch.rand(4, 4), torch.rand(4))
    zeros = torch.randint(0, 4, (12, 4), dtype=torch.uint8)
    layer = PackedLinear(dataclasses.replace(plain, zeros=zeros, transform=around))
    assert memory_bytes(layer) == plain.size_bytes + 12 * 4 + 4 * (32 + 12 + 16 + 4)
    weight = weight_of(layer.packed)
    place(layer, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(weight_of(layer.packed), weight)
    inputs = torch.randn(3, 32)
    torch.testing.assert_close(layer(inputs), inputs @ weight.T, atol=1e-4, rtol=1e-4)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16


def test_the_packed_weight_is_put_together_once_and_follows_its_buffers() -> None:
    around = Transform(16, 4, torch.ones(32))
    plain = training_form(INT2, bias=False).pack()
    layer = PackedLinear(dataclasses.replace(plain, transform=around))
    first = layer.packed
    assert layer.packed is first

    layer.scale = layer.scale * 2
    assert torch.equal(layer.packed.scale, first.scale * 2)
    layer.scale_in = -torch.ones(32)
    assert layer.packed.transform is not None
    assert layer.packed.transform.scale_in is layer.scale_in

    copied = copy.deepcopy(layer)
    assert copied.packed.codes is copied.codes
    assert copied.packed.codes is not layer.codes
    copied.to("meta")
    assert copied.packed.codes.is_meta
    assert not layer.packed.codes.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_embedding_gives_the_rows_that_its_codes_stand_for(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 32)
    layer = PackedEmbedding(INT8.pack(weight, *INT8.fit(weight, 0, "absmax")), dtype)
    ids = torch.tensor([[3, 0, 11], [3, 3, 7]])
    expected = F.embedding(ids, naive_weight(layer.packed).to(dtype))
    torch.testing.assert_close(layer(ids), expected, atol=0.0, rtol=0.0)
    assert layer(ids[:0]).shape == (0, 3, 32)
    assert memory_bytes(layer) == 12 * 32 + 12 * 2
    assert "bits=8" in repr(layer)


@pytest.mark.parametrize("token", [-1, 12])
def test_an_id_outside_of_the_vocabulary_is_refused(token: int) -> None:
    weight = torch.randn(12, 32)
    layer = PackedEmbedding(INT8.pack(weight, *INT8.fit(weight, 0)), torch.float32)
    with pytest.raises(IndexError):
        layer(torch.tensor([token]))


def test_layers_are_swapped_and_found_by_name_in_module_order(tiny: LoadedModel) -> None:
    names = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]

    def fake(_: str, linear: nn.Linear) -> FakeQuantLinear:
        latent = Latent(linear.weight, *INT4.fit(linear.weight, 0))
        return FakeQuantLinear(latent, linear.bias, INT4)

    swap_linears(tiny.model, names, fake)
    assert [name for name, _ in fake_quant_layers(tiny.model)] == sorted(names)
    for name, layer in list(fake_quant_layers(tiny.model)):
        swap_linears(tiny.model, [name], lambda _name, _linear, one=layer: PackedLinear(one.pack()))
    assert [name for name, _ in packed_layers(tiny.model)] == sorted(names)
    assert not list(fake_quant_layers(tiny.model))


def test_what_modules_share_stays_shared_when_a_model_is_placed(tiny: LoadedModel) -> None:
    weight = tiny.model.lm_head.weight
    pair = INT8.pack(weight, *INT8.fit(weight, 0, "absmax"))
    model = tiny.model
    model.model.embed_tokens = PackedEmbedding(pair, torch.float32)
    model.lm_head = PackedLinear(pair)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    size = memory_bytes(model)
    floats = sum(parameter.nbytes for parameter in model.parameters())

    place(model, torch.device("cpu"), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert memory_bytes(model) == size - floats // 2
    assert model(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.bfloat16
    assert model.lm_head.scale.dtype == torch.float16

    pair_alone = nn.ModuleList([model.model.embed_tokens, model.lm_head])
    place(pair_alone, torch.device("meta"), torch.bfloat16)
    assert model.lm_head.codes is model.model.embed_tokens.codes
    assert model.lm_head.codes.is_meta


def test_memory_counts_tied_weights_once(tiny: LoadedModel) -> None:
    parameters = sum(parameter.numel() for parameter in tiny.model.parameters())
    buffers = sum(buffer.nbytes for buffer in tiny.model.buffers())
    assert memory_bytes(tiny.model) <= parameters * 4 + buffers
    assert memory_bytes(tiny.model) >= parameters * 4
