"""EfficientQAT's grid: its initialisation, and its gradients against autograd of the expression in its code."""

import pytest
import torch

from kernels.reference import dequantize
from tests.support.grids import decode, round_trip
from upq.layers import Grid, grid_of, storable
from upq.layers.fake import fake_quantize

GROUP = 8
grids = pytest.mark.parametrize(
    "grid", [grid_of("integer_zero", 2), grid_of("integer_zero", 4)], ids=["2 bits", "4 bits"]
)


def straight_through(value: torch.Tensor) -> torch.Tensor:
    return value + (value.round() - value).detach()


def published(
    weight: torch.Tensor, log_scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> torch.Tensor:
    """clamp(round(W / s) + z, 0, 2^N - 1) back to a weight, as EfficientQAT's quantizer.py computes it."""
    scale, groups = log_scale.exp().unsqueeze(-1), weight.unflatten(1, (-1, GROUP))
    whole = straight_through(zero).clamp(0, 2**bits - 1).unsqueeze(-1)
    codes = (straight_through(groups / scale) + whole).clamp(0, 2**bits - 1)
    return ((codes - whole) * scale).flatten(1)


def layer(grid: Grid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, log scale, zero), zeros between whole codes, many weights outside of the range on either side."""
    source = torch.Generator().manual_seed(grid.bits)
    weight = 2 * torch.randn(6, 4 * GROUP, generator=source)
    scale, _ = grid.fit(weight, GROUP, "absmax")
    zero = torch.rand(6, 4, generator=source) * (grid.levels - 1)
    return weight, (0.5 * scale).log(), zero


@grids
def test_the_gradients_of_weight_scale_and_zero_are_the_published_ones(grid: Grid) -> None:
    start = layer(grid)
    upstream = torch.randn(6, 4 * GROUP, generator=torch.Generator().manual_seed(9))
    found, expected = [], []
    for leaves, compute in (
        (found, lambda w, s, z: fake_quantize(w, s, grid, zero=z)),
        (expected, lambda w, s, z: published(w, s, z, grid.bits)),
    ):
        leaves += [one.clone().requires_grad_() for one in start]
        quantized = compute(*leaves)
        quantized.backward(upstream)
        leaves.append(quantized.detach())
    torch.testing.assert_close(found[-1], expected[-1])
    for ours, theirs in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


@grids
def test_a_weight_inside_below_and_above_the_range_has_the_gradients_of_appendix_c(
    grid: Grid,
) -> None:
    scale, zero, top = 0.5, 1.0, grid.levels - 1
    for steps, weight_slope, scale_slope, zero_slope in (
        (0.3, 1.0, round(0.3) - 0.3, 0.0),
        (-4.2, 0.0, -zero, -scale),
        (top + 3.6, 0.0, top - zero, -scale),
    ):
        weight = torch.tensor([[steps * scale]], requires_grad=True)
        log_scale = torch.tensor([[scale]]).log().requires_grad_()
        zeros = torch.tensor([[zero]], requires_grad=True)
        fake_quantize(weight, log_scale, grid, zero=zeros).sum().backward()
        assert weight.grad is not None
        assert log_scale.grad is not None
        assert zeros.grad is not None
        assert weight.grad.item() == weight_slope
        assert log_scale.grad.item() == pytest.approx(scale_slope * scale, abs=1e-6)
        assert zeros.grad.item() == zero_slope


@grids
def test_the_first_scale_and_zero_are_those_of_the_groups_range(grid: Grid) -> None:
    weight = torch.randn(6, 4 * GROUP, generator=torch.Generator().manual_seed(0))
    scale, zero = grid.fit(weight, GROUP, "absmax")
    groups = weight.unflatten(1, (-1, GROUP))
    wanted = (groups.amax(-1) - groups.amin(-1)) / (grid.levels - 1)
    assert zero is not None
    assert torch.equal(scale, storable(wanted))
    assert torch.equal(zero, (-groups.amin(-1) / wanted).round())


@grids
def test_a_group_of_one_sign_keeps_its_zero_within_the_codes(grid: Grid) -> None:
    weight = torch.rand(2, GROUP) + 3
    weight[1] *= -1
    scale, zero = grid.fit(weight, GROUP, "absmax")
    assert zero is not None
    assert zero.flatten().tolist() == [0.0, grid.levels - 1.0]
    stored = round_trip(grid, weight, scale, zero)
    assert (stored - weight).abs().max() <= scale.max()


@grids
def test_fake_quantize_is_decode_of_encode_and_zeros_are_stored_whole(grid: Grid) -> None:
    weight = torch.randn(6, 4 * GROUP, generator=torch.Generator().manual_seed(1))
    fitted, zero = grid.fit(weight, GROUP)
    assert zero is not None
    log_scale = fitted.log()
    scale = log_scale.exp()
    trained = fake_quantize(weight, log_scale, grid, zero=zero + 0.3)
    assert torch.equal(trained, decode(grid, grid.encode(weight, scale, scale * zero), scale, zero))
    packed = grid.pack(weight, fitted, zero + 0.3)
    assert packed.zeros is not None
    assert packed.zeros.dtype == torch.uint8
    assert torch.equal(packed.zeros.float(), zero)
    assert torch.equal(
        dequantize(packed), decode(grid, grid.encode(weight, fitted, fitted * zero), fitted, zero)
    )


@grids
def test_search_never_has_a_larger_squared_error_than_the_range(grid: Grid) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)) ** 3
    errors = [
        (round_trip(grid, weight, *grid.fit(weight, 16, method)) - weight)  # type: ignore[arg-type]
        .square()
        .view(32, 4, 16)
        .sum(-1)
        for method in ("search", "absmax")
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < errors[1].sum()
