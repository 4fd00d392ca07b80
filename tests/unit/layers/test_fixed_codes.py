"""Layers whose codes are fixed: the same weight, the published gradient of the scale, the same codes afterwards."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from upq.layers import (
    FakeQuantLinear,
    FixedCodesLinear,
    Grid,
    Latent,
    fake_quant_layers,
    fix_codes,
    fixed_codes,
    grid_of,
)

GRIDS = [grid_of(kind, bits) for kind in ("odd", "integer_zero", "signed") for bits in (2, 4)]


def layer_of(grid: Grid) -> FakeQuantLinear:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    return FakeQuantLinear(Latent(weight, *grid.fit(weight, 16)), None, grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_weight_and_the_codes_are_those_of_the_layer(grid: Grid) -> None:
    layer = layer_of(grid)
    root = nn.Sequential(layer)
    fix_codes(root)
    fixed = root[0]
    assert isinstance(fixed, FixedCodesLinear)
    torch.testing.assert_close(fixed.quantized(torch.float32), layer.quantized(torch.float32))
    assert {name for name, _ in fixed.named_parameters()} == {
        name for name, _ in layer.named_parameters() if name != "weight"
    }
    with torch.no_grad():
        fixed.log_scale.add_(torch.linspace(-0.7, 0.7, 12).view(6, 2))
    packed = fixed.pack()
    assert torch.equal(packed.codes, layer.pack().codes)
    assert torch.equal(packed.codes, fixed.latent().pack(grid).codes)
    torch.testing.assert_close(packed.scale.abs(), fixed.log_scale.exp().half(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_is_the_one_of_scale_times_level(grid: Grid) -> None:
    fixed = FixedCodesLinear(layer_of(grid))
    inputs = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    fixed(inputs).square().sum().backward()
    found = fixed.log_scale.grad
    log_scale = fixed.log_scale.detach().clone().requires_grad_()
    zero = torch.full((6, 2), grid.zero) if fixed.zero is None else fixed.zero.detach()
    levels = fixed.codes.float().view(6, 2, 16) - zero.unsqueeze(-1)
    weight = (levels * log_scale.exp().unsqueeze(-1)).view(6, 32)
    (inputs @ weight.T).square().sum().backward()
    torch.testing.assert_close(found, log_scale.grad)


def test_codes_take_the_place_of_one_weight_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All weights beside all codes would be five times the memory that the training takes."""
    root = nn.Sequential(*(layer_of(Grid(2)) for _ in range(4)))
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
