"""The odd grids: exact identities between training form and stored form, bounds, and the gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.grids import GRIDS, decode, round_trip
from upq.layers import INT2, INT4, Grid, storable
from upq.layers.fake import CLIP_SHARE, fake_quantize
from upq.layers.grid import SMALLEST_SCALE

INT8 = Grid(8)
ROWS, COLUMNS = 3, 16
AWKWARD = (0.0, -0.0, 1e-40, -1e-40, 2.0**-14, 1.0, -1.0, 6e4, -6e4)
grids = pytest.mark.parametrize("grid", [INT2, INT4, INT8], ids=["INT2", "INT4", "INT8"])
trained_grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
groups = st.sampled_from([0, 4, 16])
methods = st.sampled_from(["search", "absmax"])


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """(ROWS, COLUMNS): ordinary values, zeros, a constant, outliers and subnormals."""
    ordinary = st.floats(-3, 3, width=32)
    element = draw(st.sampled_from([ordinary, st.sampled_from(AWKWARD), st.just(0.25)]))
    count = ROWS * COLUMNS
    values = draw(st.lists(ordinary | element, min_size=count, max_size=count))
    return torch.tensor(values).view(ROWS, COLUMNS)


def random_weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))


def used_scale(log_scale: torch.Tensor) -> torch.Tensor:
    """The scale that the training form computes with."""
    return log_scale.exp().clamp_min(SMALLEST_SCALE)


@grids
@given(weight=weights(), group=groups, method=methods)
def test_fake_quantize_is_decode_of_encode_to_the_last_bit(
    grid: Grid, weight: torch.Tensor, group: int, method: str
) -> None:
    log_scale = grid.fit(weight, group, method)[0].log()  # type: ignore[arg-type]
    scale = used_scale(log_scale)
    expected = decode(grid, grid.encode(weight, scale), scale)
    torch.testing.assert_close(fake_quantize(weight, log_scale, grid), expected, atol=0.0, rtol=0.0)


def exact_scales() -> torch.Tensor:
    """Float16 scales that come back unchanged from float32 log and exp."""
    stored = torch.arange(0x0800, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    return stored[(stored >= SMALLEST_SCALE) & (stored.log().exp() == stored)]


EXACT_SCALES = exact_scales()


@grids
@given(weight=weights(), picks=st.lists(st.integers(0, 2**16), min_size=6, max_size=6))
def test_training_form_with_stored_scales_equals_packed_and_decoded_to_the_last_bit(
    grid: Grid, weight: torch.Tensor, picks: list[int]
) -> None:
    scale = EXACT_SCALES[torch.tensor(picks) % len(EXACT_SCALES)].view(ROWS, 2)
    trained = fake_quantize(weight, scale.log(), grid)
    torch.testing.assert_close(trained, round_trip(grid, weight, scale), atol=0.0, rtol=0.0)


@grids
@given(weight=weights(), group=groups, method=methods)
def test_round_trip_is_decode_of_encode_with_the_stored_scale(
    grid: Grid, weight: torch.Tensor, group: int, method: str
) -> None:
    scale, _ = grid.fit(weight, group, method)  # type: ignore[arg-type]
    assert torch.equal(scale, storable(scale)), "fit gives scales that can be stored"
    expected = decode(grid, grid.encode(weight, scale), scale)
    torch.testing.assert_close(round_trip(grid, weight, scale), expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize(("grid", "levels"), [(INT2, 4), (INT4, 16), (INT8, 256)])
@given(weight=weights())
def test_a_group_takes_no_more_values_than_the_grid_has_levels(
    grid: Grid, levels: int, weight: torch.Tensor
) -> None:
    assert grid.levels == levels
    scale, _ = grid.fit(weight, 8)
    quantized = round_trip(grid, weight, scale)
    for group in quantized.view(-1, 8):
        assert len(group.unique()) <= levels
    assert int(grid.encode(weight, scale).max()) < levels
    assert not (quantized == 0).any(), "no level is zero"


@pytest.mark.parametrize(("grid", "levels"), [(INT2, 4), (INT4, 16), (INT8, 256)])
def test_every_level_is_an_odd_multiple_of_half_the_scale(grid: Grid, levels: int) -> None:
    codes = torch.arange(levels, dtype=torch.uint8)[None]
    expected = [0.25 * (2 * code - (levels - 1)) for code in range(levels)]
    assert decode(grid, codes, torch.tensor([[0.5]])).tolist() == [expected]


@trained_grids
@given(weight=weights(), group=groups)
def test_search_never_has_a_larger_squared_error_than_absmax(
    grid: Grid, weight: torch.Tensor, group: int
) -> None:
    def errors(method: str) -> torch.Tensor:
        scale, _ = grid.fit(weight, group, method)  # type: ignore[arg-type]
        difference = round_trip(grid, weight, scale).double() - weight.double()
        return difference.view(*scale.shape, -1).square().sum(-1)

    assert (errors("search") <= errors("absmax") * (1 + 1e-5) + 1e-12).all()


@trained_grids
def test_search_with_importance_lowers_the_weighted_error(grid: Grid) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    importance = torch.logspace(-4, 2, 64)

    def error(scale: torch.Tensor) -> torch.Tensor:
        return ((round_trip(grid, weight, scale) - weight).square() * importance).sum(-1)

    (weighted, _), (plain, _) = grid.fit(weight, 0, importance=importance), grid.fit(weight, 0)
    assert (error(weighted) <= error(plain) * (1 + 1e-5)).all()
    assert error(weighted).sum() < error(plain).sum()


@grids
@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8),
    scale=st.floats(2.0**-12, 64, width=16),
)
def test_encode_is_monotone_and_idempotent(grid: Grid, values: list[float], scale: float) -> None:
    weight, scales = torch.tensor([sorted(values)]), torch.tensor([[scale]])
    codes = grid.encode(weight, scales)
    assert codes.dtype == torch.uint8
    assert (codes[0, 1:] >= codes[0, :-1]).all()
    assert torch.equal(grid.encode(decode(grid, codes, scales), scales), codes)


@grids
@given(weight=weights(), group=groups)
def test_a_weight_that_is_not_clipped_moves_by_half_a_step_at_most(
    grid: Grid, weight: torch.Tensor, group: int
) -> None:
    scale = grid.fit(weight, group)[0].double().unsqueeze(-1)
    moved = (round_trip(grid, weight, scale.squeeze(-1)).double() - weight.double()).abs()
    moved, size = moved.view(*scale.shape[:2], -1), weight.double().abs().view(*scale.shape[:2], -1)
    unclipped = size <= scale * grid.levels / 2
    assert (moved[unclipped] <= (scale / 2 * (1 + 1e-6)).expand_as(moved)[unclipped]).all()


def gradients(
    weight: torch.Tensor, log_scale: torch.Tensor, grid: Grid, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    leaves = weight.clone().requires_grad_(), log_scale.clone().requires_grad_()
    fake_quantize(*leaves, grid).backward(upstream)
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    return leaves[0].grad, leaves[1].grad


@grids
@pytest.mark.parametrize("group", [4, 16])
def test_gradients_are_the_mask_and_the_lsq_formula_of_a_loop(grid: Grid, group: int) -> None:
    weight, upstream = random_weight(0) * 2, random_weight(1)
    log_scale = (grid.fit(weight, group)[0] * 0.6).log()  # so that some weights are clipped
    by_weight, by_scale = gradients(weight, log_scale, grid, upstream)
    quantized, scale = fake_quantize(weight, log_scale, grid), log_scale.exp()
    expected = torch.zeros_like(log_scale)
    clipped = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            at = row, column // group
            inside = abs(weight[row, column]) <= CLIP_SHARE * grid.levels / 2 * scale[at]
            step = quantized[row, column] - (weight[row, column] if inside else 0)
            expected[at] += upstream[row, column] * step
            assert by_weight[row, column] == (upstream[row, column] if inside else 0)
            clipped += not inside
    assert 0 < clipped < weight.numel()
    torch.testing.assert_close(by_scale, expected, atol=1e-5, rtol=1e-5)


@grids
def test_gradients_are_finite_differences_of_the_straight_through_surrogate(grid: Grid) -> None:
    """Rounding is flat almost everywhere, so differences of the op itself say nothing about its gradient.

    Straight through, floor(w / s) + 1/2 stands for w / s + c with c frozen: the surrogate is w + s c, and
    where a weight is clipped its code is frozen, so it is s (code - zero), the quantized weight linear in s.
    """
    weight, upstream = random_weight(2).double() * 2, random_weight(3).double()
    log_scale = (grid.fit(weight, 8)[0] * 0.6).double().log()
    scale = log_scale.exp().unsqueeze(-1)
    grouped = weight.view(*log_scale.shape, -1)
    levels = grid.encode(weight, log_scale.exp()).double().view_as(grouped) - grid.zero
    inside = grouped.abs() <= CLIP_SHARE * grid.levels / 2 * scale
    residual = levels - grouped / scale

    def surrogate(moved: torch.Tensor, moved_log: torch.Tensor) -> torch.Tensor:
        moved, step = moved.view_as(grouped), moved_log.exp().unsqueeze(-1)
        value = torch.where(inside, moved + step * residual, step * levels)
        return (value * upstream.view_as(grouped)).sum()

    def differences(point: torch.Tensor, function: object) -> torch.Tensor:
        slopes = torch.empty_like(point)
        for index in range(point.numel()):
            nudge = torch.zeros_like(point)
            nudge.view(-1)[index] = 1e-6
            up, down = function(point + nudge), function(point - nudge)  # type: ignore[operator]
            slopes.view(-1)[index] = (up - down) / 2e-6
        return slopes

    by_weight, by_scale = gradients(weight.float(), log_scale.float(), grid, upstream.float())
    expected_weight = differences(weight, lambda moved: surrogate(moved, log_scale))
    expected_scale = differences(log_scale, lambda moved: surrogate(weight, moved))
    torch.testing.assert_close(by_weight.double(), expected_weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_scale.double(), expected_scale, atol=1e-4, rtol=1e-4)


def test_the_scale_gets_no_gradient_where_it_is_not_asked_for() -> None:
    weight = random_weight().requires_grad_()
    log_scale = INT2.fit(weight.detach(), 0)[0].log()
    fake_quantize(weight, log_scale, INT2, torch.bfloat16).float().sum().backward()
    assert weight.grad is not None
    assert log_scale.grad is None


def test_no_scale_is_stored_below_the_smallest_or_beyond_float16() -> None:
    stored = storable(torch.tensor([0.0, 1e-30, 1e9, 0.1]))
    assert stored.tolist() == [
        SMALLEST_SCALE,
        SMALLEST_SCALE,
        65504.0,
        float(torch.tensor(0.1).half()),
    ]
