"""Layers whose codes are fixed: the same weight, the published gradient of the scale, the same codes afterwards."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from kernels.reference import dequantize, group_scales
from upq.config import PrecisionConfig
from upq.layers import (
    FakeQuantLinear,
    FixedCodesLinear,
    Form,
    Grid,
    Latent,
    fake_quant_layers,
    fix_codes,
    fixed_codes,
    grid_of,
)

ROWS = 6
TWO_LEVELS = Form(grid_of("q2_k", 2), 16)


def portable(columns: int) -> Form:
    """What the grid `gguf` of INT2 makes of a layer with so many inputs."""
    kind, group = PrecisionConfig(grid="gguf").form(columns)
    return Form(grid_of(kind, 2), group)


#: Forms of layers and their inputs: two levels of scales in one block of 2 groups, in two of 15 and in one of 16.
CASES = [
    *(
        (Form(grid_of(kind, bits), 16), 32)
        for kind in ("odd", "integer_zero", "signed")
        for bits in (2, 4)
    ),
    *((TWO_LEVELS, columns) for columns in (32, 480)),
    *((portable(columns), columns) for columns in (192, 256)),
]
every_case = pytest.mark.parametrize(
    ("form", "columns"),
    CASES,
    ids=[f"{form.grid}-{form.group_size}-{columns}" for form, columns in CASES],
)


def layer_of(form: Form, columns: int = 32) -> FakeQuantLinear:
    weight = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(0))
    latent = Latent(weight, *form.grid.fit(weight, form.group_size))
    return FakeQuantLinear(latent, None, form.grid)


def move_scales(layer: FakeQuantLinear) -> None:
    """Change every scale by another factor, between a half and two."""
    shape = layer.log_scale.shape
    with torch.no_grad():
        layer.log_scale.add_(torch.linspace(-0.7, 0.7, shape.numel()).view(shape))


@every_case
def test_the_weight_and_the_codes_are_those_of_the_layer(form: Form, columns: int) -> None:
    layer = layer_of(form, columns)
    root = nn.Sequential(layer)
    fix_codes(root)
    fixed = root[0]
    assert isinstance(fixed, FixedCodesLinear)
    torch.testing.assert_close(fixed.quantized(torch.float32), layer.quantized(torch.float32))
    assert {name for name, _ in fixed.named_parameters()} == {
        name for name, _ in layer.named_parameters() if name != "weight"
    }
    move_scales(fixed)
    packed = fixed.pack()
    assert torch.equal(packed.codes, layer.pack().codes)
    assert torch.equal(packed.codes, fixed.latent().pack(form.grid).codes)
    torch.testing.assert_close(
        dequantize(packed), fixed.quantized(torch.float32), rtol=1e-3, atol=0
    )
    wanted, stored = fixed.log_scale.exp(), group_scales(packed)[0].abs()
    if packed.steps is None:
        torch.testing.assert_close(stored, wanted, rtol=1e-3, atol=0)
    else:  # half a step of the block at most
        step = packed.scale.float().repeat_interleave(stored.shape[1] // packed.scale.shape[1], 1)
        assert ((stored - wanted).abs() <= 0.51 * step).all()


@every_case
def test_the_gradient_is_the_one_of_scale_times_level(form: Form, columns: int) -> None:
    fixed = FixedCodesLinear(layer_of(form, columns))
    inputs = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    fixed(inputs).square().sum().backward()
    found = fixed.log_scale.grad
    log_scale = fixed.log_scale.detach().clone().requires_grad_()
    middle = torch.full_like(log_scale, form.grid.zero)
    zero = middle if fixed.zero is None else fixed.zero.detach()
    levels = fixed.codes.float().view(*log_scale.shape, -1) - zero.unsqueeze(-1)
    weight = (levels * log_scale.exp().unsqueeze(-1)).flatten(1)
    (inputs @ weight.T).square().sum().backward()
    torch.testing.assert_close(found, log_scale.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("columns", [32, 480])
def test_the_gradient_passes_straight_through_the_steps_of_a_block(columns: int) -> None:
    """A group's scale that is between two steps learns as if the settled one could move on its own."""
    fixed = FixedCodesLinear(layer_of(TWO_LEVELS, columns))
    move_scales(fixed)
    scale, offset = TWO_LEVELS.grid.settled(fixed.log_scale.detach().exp(), fixed.zero)
    assert offset is not None
    assert not torch.allclose(scale, fixed.log_scale.exp(), rtol=1e-3), "scales are between steps"
    inputs = torch.randn(5, columns, generator=torch.Generator().manual_seed(1))
    fixed(inputs).square().sum().backward()
    factor = torch.ones_like(scale).requires_grad_()
    levels = fixed.codes.float().view(*scale.shape, -1) * scale.unsqueeze(-1)
    settled = levels - offset.detach().unsqueeze(-1)
    (inputs @ (settled * factor.unsqueeze(-1)).flatten(1).T).square().sum().backward()
    torch.testing.assert_close(fixed.log_scale.grad, factor.grad, rtol=1e-4, atol=1e-3)


def test_codes_take_the_place_of_one_weight_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All weights beside all codes would be five times the memory that the training takes."""
    root = nn.Sequential(*(layer_of(Form(Grid(2), 16)) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for _, layer in fake_quant_layers(root)]
    alive: list[int] = []
    replace = fixed_codes.replace_module

    def counting(*arguments: Any) -> None:
        replace(*arguments)
        alive.append(sum(weight() is not None for weight in weights))

    monkeypatch.setattr(fixed_codes, "replace_module", counting)
    fix_codes(root)
    assert alive == [4, 3, 2, 1], "only the layer that is being replaced is still there"
    fix_codes(root)
    assert len(alive) == 4, "codes that are fixed stay as they are"
