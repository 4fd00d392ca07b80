"""The grid with two levels of scales: exact in stored form, gradients straight through the second level, its errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.packing import nested_block, unpack
from kernels.reference import dequantize
from tests.support.grids import round_trip
from upq.layers import FakeQuantLinear, FixedCodesLinear, Grid, Latent, grid_of
from upq.layers.fake import fake_quantize

GRID = grid_of("q2_k", 2)
SIZES = st.sampled_from([16, 48, 192, 256, 512, 576, 960])


def weight_of(seed: int, columns: int, rows: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-3, 0, rows).unsqueeze(1)
    return scale * torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize(
    ("columns", "block"), [(256, 256), (576, 192), (896, 224), (960, 240), (1536, 256), (16, 16)]
)
def test_a_block_is_the_largest_multiple_of_sixteen_that_divides_the_row(
    columns: int, block: int
) -> None:
    assert nested_block(columns) == block


@given(seed=st.integers(0, 2**16), columns=SIZES, method=st.sampled_from(["search", "absmax"]))
def test_training_form_equals_packed_and_decoded_to_the_last_bit(
    seed: int, columns: int, method: str
) -> None:
    weight = weight_of(seed, columns)
    scale, zero = GRID.fit(weight, 16, method)  # type: ignore[arg-type]
    assert zero is not None
    layer = FakeQuantLinear(Latent(weight, scale, zero), None, GRID)
    assert torch.equal(layer.quantized(torch.float32), dequantize(layer.pack()))
    assert torch.equal(dequantize(layer.pack()), round_trip(GRID, weight, scale, zero))


@given(seed=st.integers(0, 2**16), columns=SIZES)
def test_the_same_holds_for_scales_and_zeros_wherever_training_leads(
    seed: int, columns: int
) -> None:
    weight, generator = weight_of(seed, columns), torch.Generator().manual_seed(seed)
    groups = 5, columns // 16
    scale = torch.rand(groups, generator=generator).add(1e-3) * 0.1
    zero = 5 * torch.rand(groups, generator=generator) - 1
    layer = FakeQuantLinear(Latent(weight, scale, zero), None, GRID)
    assert torch.equal(layer.quantized(torch.float32), dequantize(layer.pack()))
    fixed = FixedCodesLinear(layer)
    assert torch.equal(fixed.quantized(torch.float32), layer.quantized(torch.float32))
    assert torch.equal(fixed.pack().codes, layer.pack().codes)
    assert torch.equal(dequantize(fixed.pack()), dequantize(layer.pack()))


def test_what_is_fitted_is_settled_already() -> None:
    scale, zero = GRID.fit(weight_of(0, 576), 16)
    assert zero is not None
    again, offset = GRID.settled(scale, zero)
    assert torch.equal(again, scale)
    assert offset is not None
    torch.testing.assert_close(offset, scale * zero, rtol=1e-6, atol=0)
    twice, still = GRID.settled(scale.log().exp(), offset / again)
    assert torch.equal(twice, scale)
    assert still is not None
    assert torch.equal(still, offset)


def test_a_level_is_the_formula_of_gguf() -> None:
    packed = GRID.pack(weight_of(1, 512), *GRID.fit(weight_of(1, 512), 16))
    assert packed.steps is not None
    assert packed.minimum is not None
    assert packed.scale.dtype == packed.minimum.dtype == torch.float16
    assert packed.scale.shape == packed.minimum.shape == (5, 2)
    assert packed.size_bytes * 8 / (5 * 512) == 2.625
    codes = unpack(packed.codes, 2).double().view(5, 2, 16, 16)
    steps = packed.steps.view(5, 2, 16, 1)
    scale = packed.scale.double().view(5, 2, 1, 1) * (steps & 15)
    minimum = packed.minimum.double().view(5, 2, 1, 1) * (steps >> 4)
    expected = (scale * codes - minimum).float().view(5, 512)
    assert torch.equal(dequantize(packed), expected)


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.zeros(2, 32)
    assert not round_trip(GRID, weight, *GRID.fit(weight, 16)).any()


def test_the_gradients_are_those_of_the_settled_scale_and_zero() -> None:
    """Straight through: as of a grid whose scale and zero these are (the formulas of integer zeros)."""
    weight = weight_of(4, 64).requires_grad_()
    scale, zero = GRID.fit(weight.detach(), 16)
    assert zero is not None
    settled, offset = GRID.settled(scale * 1.03, zero * 0.98)
    assert offset is not None
    upstream = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    log_scale = (scale * 1.03).log().requires_grad_()
    zeros = (zero * 0.98).requires_grad_()
    quantized = fake_quantize(weight, log_scale, GRID, zero=zeros)
    quantized.backward(upstream)
    groups = weight.detach().view(5, 4, 16)
    steps = (groups + offset.unsqueeze(-1)) / settled.unsqueeze(-1)
    inside = (steps >= -0.5) & (steps <= 3.5)
    arriving = upstream.view(5, 4, 16)
    assert weight.grad is not None
    assert log_scale.grad is not None
    assert zeros.grad is not None
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(weight.grad.view(5, 4, 16), arriving * inside)
    by_scale = arriving * quantized.detach().view(5, 4, 16) - arriving * inside * groups
    torch.testing.assert_close(log_scale.grad, by_scale.sum(-1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        zeros.grad, -(arriving * ~inside).sum(-1) * settled, rtol=1e-4, atol=1e-6
    )


def test_of_normal_weights_it_has_far_less_error_than_the_odd_grid() -> None:
    """0.068 of the variance against 0.113, by best scales in real numbers; the steps cost a little."""
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))

    def error(grid: Grid, group: int) -> float:
        return (round_trip(grid, weight, *grid.fit(weight, group)) - weight).square().mean().item()

    assert error(GRID, 16) < 0.080
    assert error(GRID, 16) < 0.72 * error(Grid(2), 64)


def test_search_never_has_a_larger_squared_error_than_the_range() -> None:
    weight = weight_of(6, 256, 32)
    errors = [
        (round_trip(GRID, weight, *GRID.fit(weight, 16, method)) - weight).square().sum(-1)  # type: ignore[arg-type]
        for method in ("search", "absmax")
    ]
    assert (errors[0] <= errors[1]).all()
