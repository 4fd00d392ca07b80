"""Steps of two levels of scales, fitted again: against trying all of them."""

from __future__ import annotations

import itertools

import torch

from kernels.reference import dequantize
from upq.layers import MOST_STEPS, Steps, grid_of
from upq.training.ldlq import damped, ldlq
from upq.training.step_refits import refitted_steps

GRID = grid_of("q2_k", 2)
ROWS, COLUMNS, GROUP = 6, 64, 2


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, COLUMNS, generator=generator).cumsum(1)
    return torch.randn(ROWS, COLUMNS, generator=generator), damped(inputs.T @ inputs)


def error(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    missed = (weight - rounded).double()
    return ((missed @ hessian.double()) * missed).sum(1)


def test_no_other_steps_of_a_group_have_less_error() -> None:
    weight, hessian = problem()
    scale, zero = GRID.fit(weight, 16)
    assert zero is not None
    steps = Steps.of(scale, scale * zero)
    settled, offset = steps.settled
    rounded = GRID.round(
        weight.view(ROWS, 4, 16), settled.unsqueeze(-1), offset.unsqueeze(-1)
    ).flatten(1)
    ours = slice(16 * GROUP, 16 * GROUP + 16)
    unit, minimum, before, below = (part.clone() for part in steps.group(GROUP))
    codes = ((rounded[:, ours].T + minimum * below) / (unit * before)).round()
    pull = ((weight - rounded) @ hessian)[:, ours].T.contiguous()
    found = refitted_steps(steps, GROUP, rounded[:, ours].T, pull, hessian[ours, ours])
    changed = rounded.clone()
    changed[:, ours] = found.T
    least = error(weight, rounded, hessian)
    for up, higher in itertools.product(range(1, MOST_STEPS + 1), range(MOST_STEPS + 1)):
        tried = rounded.clone()
        of_scale = torch.where(before == MOST_STEPS, before, up)
        of_minimum = torch.where(below == MOST_STEPS, below, higher)
        tried[:, ours] = (codes * unit * of_scale - minimum * of_minimum).T
        least = torch.minimum(least, error(weight, tried, hessian))
    result = error(weight, changed, hessian)
    assert (result < error(weight, rounded, hessian)).any()
    assert (result <= least * (1 + 1e-4)).all()
    assert steps.group(GROUP)[2].amax() <= MOST_STEPS


def test_every_pass_of_descent_lowers_the_error_of_what_is_stored() -> None:
    weight, hessian = problem()
    errors = []
    for passes in range(4):
        latent = ldlq(weight, hessian, GRID, 16, passes=passes)
        assert latent.zero is not None
        stored = dequantize(latent.pack(GRID))
        errors.append(error(weight, stored, damped(hessian)).sum().item())
    assert errors[1] < 0.9 * errors[0]
    assert errors[3] <= errors[2] <= errors[1]


def test_the_steps_of_the_largest_group_stay_and_with_them_the_blocks_unit() -> None:
    weight, hessian = problem()
    first, second = (ldlq(weight, hessian, GRID, 16, passes=passes) for passes in (0, 2))
    for part in ("scale", "minimum"):
        assert torch.equal(first.pack(GRID).tensors[part], second.pack(GRID).tensors[part])
