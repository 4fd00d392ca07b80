"""One-shot rounding from a Hessian: LDLQ, which is GPTQ, scale refits and coordinate descent (UniSVQ section 3.3).

With X the inputs of a layer and H = X^T X, all of it lowers tr((W - Q) H (W - Q)^T), the squared error of the layer's
outputs. A solver returns latent weights: what every weight had become when it was rounded, so that training may
go on from them, and rounding them to the nearest level gives the solver's codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kernels.transform import LATTICE
from upq.layers import Grid, Latent, Steps, TwoLevelGrid, storable
from upq.training.step_refits import refitted_steps

#: Columns that are rounded one after the other before later columns hear of them; a group is never longer undivided.
BLOCK = 64
#: Added to the Hessian's diagonal, as a share of its mean (GPTQ's default).
DAMPING = 0.01
#: A refitted scale below this share of the old one means a degenerate system; the old one stays.
SMALLEST_REFIT = 0.3


@torch.no_grad()
def ldlq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    group_size: int,
    scale_init: str = "search",
    passes: int = 0,
    lattice: torch.Tensor | None = None,
) -> Latent:
    """Round weight (out, in) against hessian (in, in), inputs first to last, errors carried on to later inputs.

    Scales are fitted to what a group has become when its turn comes, each input weighted by how much of its error
    cannot be made up for later. passes: rounds of refitted scales and coordinate descent. lattice: (4, 4) orthonormal
    A / c of UniSVQ; the latent weight then is what A multiplies, four codes at a time.
    Raises ValueError for a Hessian that is not positive definite even when damped.
    """
    hessian = damped(hessian)
    latent, rounded = _carry_errors(weight, hessian, grid, group_size, scale_init, lattice)
    if lattice is not None:
        # Descent moves one code at a time, so it works in the basis of the codes.
        weight, rounded = _to_codes(weight, lattice), _to_codes(rounded, lattice)
        hessian = _to_codes(_to_codes(hessian, lattice).T, lattice)
    for _ in range(passes):
        scale = latent.scale
        if grid.refits_scales:
            scale = _refit(weight, rounded, latent.scale, hessian)
            rounded = _rescaled(rounded, latent.scale, scale)
        latent, rounded = _descend(weight, rounded, scale, latent.zero, hessian, grid)
    return latent


def damped(hessian: torch.Tensor) -> torch.Tensor:
    """The Hessian over its mean diagonal, DAMPING added: float32."""
    diagonal = hessian.diagonal()
    scaled = (hessian / diagonal.mean().clamp_min(1e-30)).float()
    scaled.diagonal().add_(DAMPING)
    return scaled


def _factor(hessian: torch.Tensor) -> torch.Tensor:
    """Upper triangular U, float32, with U^T U = H^-1: row i says how the error of input i reaches later inputs."""
    lower, failed = torch.linalg.cholesky_ex(hessian.double())
    if failed:
        raise ValueError("the Hessian is not positive definite")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def _carry_errors(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    group_size: int,
    scale_init: str,
    lattice: torch.Tensor | None,
) -> tuple[Latent, torch.Tensor]:
    factor = _factor(hessian)
    columns = weight.shape[1]
    group = group_size or columns
    together, block = grid.fitted_together(columns, group), _block(group)
    left = (
        weight.float().clone()
    )  # what is left to round, with the errors that have been carried on
    latent, rounded = torch.empty_like(left), torch.empty_like(left)
    scales, zeros = [], []
    settled: tuple[torch.Tensor, torch.Tensor | None] = (left, None)
    for start in range(0, columns, block):
        stop = start + block
        if start % together == 0:
            ours = slice(start, start + together)
            matters = factor.diagonal()[ours].square().reciprocal()
            codes = left[:, ours] if lattice is None else _to_codes(left[:, ours], lattice)
            scale, zero = grid.fit(codes, group, scale_init, matters)  # type: ignore[arg-type]
            scales.append(scale)
            zeros.append(zero)
            settled = grid.settled(scale, zero)
        rounding = Rounding(grid, *_of_group(*settled, start % together // group), lattice)
        found, errors = _round_block(left[:, start:stop], factor[start:stop, start:stop], rounding)
        latent[:, start:stop], rounded[:, start:stop] = found[0].T, found[1].T
        left[:, stop:].addmm_(errors.T, factor[start:stop, stop:], alpha=-1)
    zero = None if zeros[0] is None else torch.cat(zeros, 1)
    return Latent(latent, torch.cat(scales, 1), zero), rounded


class Rounding(NamedTuple):
    """How the columns of one group are rounded. scale, offset: (out,), settled; lattice: as of `ldlq`."""

    grid: Grid
    scale: torch.Tensor
    offset: torch.Tensor | None
    lattice: torch.Tensor | None = None

    def level(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest levels to values (..., out)."""
        return self.grid.round(values, self.scale, self.offset)


def _of_group(
    scale: torch.Tensor, offset: torch.Tensor | None, group: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(scale, offset), (out,), of one group of settled ones (out, groups)."""
    return scale[:, group], None if offset is None else offset[:, group]


def _block(group: int) -> int:
    """How many columns are rounded before their errors reach the later ones; it divides the group or is the group."""
    return BLOCK if group % BLOCK == 0 else group


def _round_block(
    left: torch.Tensor, factor: torch.Tensor, rounding: Rounding
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """((latent, rounded), errors), all (columns, out), of the columns left (out, columns)."""
    lattice = rounding.lattice
    step = 1 if lattice is None else LATTICE
    left = left.T.contiguous()
    latent, rounded, errors = (torch.empty_like(left) for _ in range(3))
    for at in range(0, len(left), step):
        now, later = slice(at, at + step), slice(at + step, None)
        latent[now] = left[now] if lattice is None else lattice.T @ left[now]
        levels = rounding.level(latent[now])
        rounded[now] = levels if lattice is None else lattice @ levels
        missed = left[now] - rounded[now]
        corner = factor[now, now]
        errors[now] = missed / corner if step == 1 else torch.linalg.solve(corner.T, missed)
        left[later].addmm_(factor[now, later].T, errors[now], alpha=-1)
    return (latent, rounded), errors


def _to_codes(weight: torch.Tensor, lattice: torch.Tensor) -> torch.Tensor:
    """weight (out, in) in the basis in which the lattice's codes are rounded."""
    return (weight.unflatten(1, (-1, LATTICE)) @ lattice).flatten(1)


def _refit(
    weight: torch.Tensor, rounded: torch.Tensor, scale: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """The scales (out, groups) of least squared output error for the codes as they are: one small system per row."""
    rows, groups = scale.shape
    units = rounded.view(rows, groups, -1) / scale.unsqueeze(-1)
    wanted = ((weight @ hessian).view(rows, groups, -1) * units).sum(-1)
    system = torch.empty(rows, groups, groups, device=weight.device)
    width = units.shape[-1]
    for group in range(groups):
        reached = units[:, group] @ hessian[group * width : (group + 1) * width]
        system[:, group] = (reached.view(rows, groups, width) * units).sum(-1)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal += 1e-4 * diagonal.mean(-1, keepdim=True).clamp_min(1e-30)  # a row may be all zeros
    fitted = torch.linalg.solve(system, wanted)
    return storable(torch.where(fitted > SMALLEST_REFIT * scale, fitted, scale))


def _rescaled(rounded: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """The same codes at other scales."""
    return (rounded.view(*old.shape, -1) * (new / old).unsqueeze(-1)).flatten(1)


def _descend(
    weight: torch.Tensor,
    rounded: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    hessian: torch.Tensor,
    grid: Grid,
) -> tuple[Latent, torch.Tensor]:
    """One pass of coordinate descent, last input to first: every code moves to its best level given all others. With
    two levels of scales a group's steps move before its codes do.
    """
    columns, groups = weight.shape[1], scale.shape[1]
    width = columns // groups
    gradient = (weight - rounded) @ hessian
    latent, diagonal = torch.empty_like(rounded), hessian.diagonal()
    rounded, settled = rounded.clone(), grid.settled(scale, zero)
    steps = None
    if isinstance(grid, TwoLevelGrid):
        assert zero is not None
        steps = Steps.of(scale, scale * zero)
    for start in range(columns - _block(width), -1, -_block(width)):
        ours, group = slice(start, start + _block(width)), start // width
        block, pull = rounded[:, ours].T.contiguous(), gradient[:, ours].T.contiguous()
        corner, rounding = hessian[ours, ours], Rounding(grid, *_of_group(*settled, group))
        if steps is not None:
            block = refitted_steps(steps, group, block, pull, corner)
            pull.addmm_(corner, block - rounded[:, ours].T, alpha=-1)
            rounding = Rounding(grid, *steps.of_group(group))
        wanted = torch.empty_like(block)
        for at in range(len(block) - 1, -1, -1):
            wanted[at] = block[at] + pull[at] / diagonal[start + at]
            level = rounding.level(wanted[at])
            pull.addr_(corner[at], level - block[at], alpha=-1)
            block[at] = level
        gradient.addmm_(block.T - rounded[:, ours], hessian[ours], alpha=-1)
        rounded[:, ours], latent[:, ours] = block.T, wanted.T
    if steps is not None:
        scale, offset = steps.settled
        zero = offset / scale
    return Latent(latent, scale, zero), rounded
