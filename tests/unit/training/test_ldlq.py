"""LDLQ against GPTQ written plainly in float64; what it lowers, what descent adds, and what it refuses."""

from itertools import pairwise

import pytest
import torch

from tests.support.grids import decode, round_trip
from upq.layers import INT2, INT4, Grid, grid_of
from upq.training.initialise import lattice
from upq.training.ldlq import damped, ldlq

ROWS = 5
#: Grids whose groups may have any number of inputs, and the one of two levels of scales, whose groups have 16.
SIGNED = [grid_of("signed", bits) for bits in (2, 4)]
GRIDS = [INT2, INT4, *(grid_of("integer_zero", bits) for bits in (2, 4)), *SIGNED]
TWO_LEVELS = grid_of("q2_k", 2)
FORMS = [(grid, group) for grid in GRIDS for group in (0, 16, 128)] + [(TWO_LEVELS, 16)]


def proxy_error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T), UniSVQ's proxy of the layer's relative error."""
    error = weight - rounded
    return (((error @ hessian) * error).sum() / ((weight @ hessian) * weight).sum()).item()


def problem(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight (ROWS, columns), Hessian of strongly correlated inputs (columns, columns))."""
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=source) * torch.logspace(0, -1, columns)
    inputs = torch.randn(4 * columns, columns, generator=source) @ mixing
    return torch.randn(ROWS, columns, generator=source), inputs.T @ inputs


def brute_force(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    group: int,
    affine: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latent, rounded), float64: round `step` inputs, invert the Hessian of those that are left, pass the error on."""
    step = 1 if affine is None else len(affine)
    basis = torch.eye(step).double() if affine is None else affine.double()
    left, hessian = weight.double().clone(), damped(hessian).double()
    latent, rounded = torch.empty_like(left), torch.empty_like(left)
    together = grid.fitted_together(weight.shape[1], group)
    matters = torch.stack(
        [1 / torch.linalg.inv(hessian[at:, at:])[0, 0] for at in range(len(hessian))]
    )
    scales, offsets = torch.empty(0), None
    for at in range(0, weight.shape[1], step):
        now, later = slice(at, at + step), slice(at + step, None)
        if at % together == 0:
            ours = slice(at, at + together)
            turned = (left[:, ours].unflatten(1, (-1, step)) @ basis).flatten(1).float()
            scales, offsets = grid.settled(*grid.fit(turned, group, "absmax", matters[ours]))
        inverse, place = torch.linalg.inv(hessian[at:, at:]), [at % together // group]
        scale = scales[:, place].double()
        offset = None if offsets is None else offsets[:, place].double()
        latent[:, now] = left[:, now] @ basis
        rounded[:, now] = grid.round(latent[:, now], scale, offset) @ basis.T
        missed = left[:, now] - rounded[:, now]
        left[:, later] -= missed @ torch.linalg.inv(inverse[:step, :step]) @ inverse[:step, step:]
    return latent, rounded


@pytest.mark.parametrize(
    ("grid", "columns", "group"),
    [
        *((grid, *sizes) for grid in GRIDS for sizes in ((32, 8), (32, 0), (256, 128))),
        *((TWO_LEVELS, columns, 16) for columns in (32, 256, 288)),  # two blocks of 144 in the last
    ],
    ids=str,
)
def test_the_codes_are_those_of_gptq_written_plainly(grid: Grid, columns: int, group: int) -> None:
    weight, hessian = problem(columns)
    found = ldlq(weight, hessian, grid, group, "absmax")
    latent, rounded = brute_force(weight, hessian, grid, group or columns)
    assert found.scale.shape == (ROWS, columns // (group or columns))
    assert (found.zero is not None) == grid.has_zeros
    torch.testing.assert_close(found.weight.double(), latent, atol=1e-3, rtol=1e-3)
    stored = round_trip(grid, found.weight, found.scale, found.zero)
    torch.testing.assert_close(stored.double(), rounded, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("group", [0, 16])
def test_four_lattice_codes_are_rounded_together(group: int) -> None:
    weight, hessian = problem(32)
    affine = lattice()
    torch.testing.assert_close(affine @ affine.T, torch.eye(4))
    found = ldlq(weight, hessian, INT2, group, "absmax", lattice=affine)
    latent, rounded = brute_force(weight, hessian, INT2, group or 32, affine)
    codes = INT2.encode(found.weight, found.scale)
    assert torch.equal(codes, INT2.encode(latent.float(), found.scale))
    stored = decode(INT2, codes, found.scale).unflatten(1, (-1, 4)) @ affine.T
    torch.testing.assert_close(stored.flatten(1).double(), rounded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [*GRIDS, TWO_LEVELS], ids=str)
@pytest.mark.parametrize("scale_init", ["absmax", "search"])
def test_errors_that_are_carried_on_cost_the_outputs_less(grid: Grid, scale_init: str) -> None:
    weight, hessian = problem(64)
    found = ldlq(weight, hessian, grid, 16, scale_init)
    solved = round_trip(grid, found.weight, found.scale, found.zero)
    nearest = round_trip(grid, weight, *grid.fit(weight, 16, scale_init))  # type: ignore[arg-type]
    assert proxy_error(weight, solved, hessian) < 0.7 * proxy_error(weight, nearest, hessian)


@pytest.mark.parametrize(("grid", "group"), FORMS, ids=str)
@pytest.mark.parametrize("affine", [None, lattice()], ids=["scalar", "lattice"])
def test_no_pass_of_coordinate_descent_raises_the_error(
    grid: Grid, group: int, affine: torch.Tensor | None
) -> None:
    weight, hessian = problem(256 if group == 128 else 64, seed=1)
    errors = []
    for passes in range(4):
        found = ldlq(weight, hessian, grid, group, passes=passes, lattice=affine)
        stored = round_trip(grid, found.weight, found.scale, found.zero)
        if affine is not None:
            stored = (stored.unflatten(1, (-1, 4)) @ affine.T).flatten(1)
        errors.append(proxy_error(weight, stored, damped(hessian)))
    assert all(after <= before * (1 + 1e-3) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest() -> None:
    weight, _ = problem(32)
    found = ldlq(weight, torch.diag(torch.logspace(-2, 2, 32)), INT2, 8, "absmax")
    scale, _ = INT2.fit(weight, 8, "absmax")
    assert torch.equal(found.scale, scale)
    assert torch.equal(found.weight, weight)


@pytest.mark.parametrize(("grid", "group"), FORMS, ids=str)
@pytest.mark.parametrize("scale_init", ["absmax", "search"])
def test_inputs_of_one_power_give_the_codes_of_the_nearest_levels(
    grid: Grid, group: int, scale_init: str
) -> None:
    weight, _ = problem(256)
    found = ldlq(weight, 3 * torch.eye(256), grid, group, scale_init).pack(grid)
    nearest = grid.pack(weight, *grid.fit(weight, group, scale_init))  # type: ignore[arg-type]
    for name, tensor in nearest.tensors.items():
        assert torch.equal(found.tensors[name], tensor)


def test_the_scale_is_fitted_to_the_inputs_that_matter() -> None:
    weight, _ = problem(32)
    power = torch.logspace(-3, 3, 32)
    found = ldlq(weight, torch.diag(power), INT2, 0)
    expected, _ = INT2.fit(weight, 0, importance=damped(torch.diag(power)).diagonal())
    assert torch.equal(found.scale, expected)


def test_an_indefinite_hessian_is_refused() -> None:
    weight, _ = problem(32)
    with pytest.raises(ValueError, match="not positive definite"):
        ldlq(weight, torch.ones(32, 32) * 5 - 4 * torch.eye(32) * 2, INT2, 8)


@pytest.mark.parametrize("grid", [*GRIDS, TWO_LEVELS], ids=str)
def test_outputs_without_weights_are_no_obstacle(grid: Grid) -> None:
    weight, hessian = problem(32)
    weight[2] = 0.0
    found = ldlq(weight, hessian, grid, 16, passes=2)
    stored = round_trip(grid, found.weight, found.scale, found.zero)
    assert stored[2].abs().max() <= stored[1].abs().max()
    assert found.weight.isfinite().all()


def test_inputs_without_power_are_no_obstacle() -> None:
    weight, hessian = problem(32)
    hessian[:, 3] = hessian[3] = 0.0
    found = ldlq(weight, hessian, INT2, 8)
    assert found.weight.isfinite().all()
