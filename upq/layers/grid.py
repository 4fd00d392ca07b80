"""Fitting scales and rounding weights: the odd grid, and what all grids share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from kernels.packing import PackedWeight, pack

#: Smallest scale: half of it is still a normal float16, so that every exporter of the format is loss-free.
SMALLEST_SCALE = 2.0**-13
#: Shares of the largest weight that the error search tries as clipping point; the best is refined once.
SEARCH_SHARES = tuple(0.16 + 0.06 * step for step in range(15))
REFINE_SHARES = (-0.04, -0.02, 0.02, 0.04)
#: Weights that a CPU works on at once: few enough that the passes over them stay in its cache.
CHUNK_WEIGHTS = 65_536


@dataclass(frozen=True)
class Grid:
    """2**bits levels at odd multiples of half a scale, none of them zero (UPQ, ParetoQ): scale * (code - zero), zero in
    the middle of the codes. The other grids are made of it.

    Scales and zeros of a latent are positive and real. `settled` says at which scales and offsets weights are rounded:
    a level is scale * code - offset, offset None where it is scale * zero everywhere.
    """

    bits: int
    #: The grid's name among the settings.
    kind: ClassVar[str] = "odd"
    #: Whether every group has a zero of its own, and whether training may move it.
    has_zeros: ClassVar[bool] = False
    trains_zeros: ClassVar[bool] = False
    #: Whether scales may be fitted again to codes, each for itself.
    refits_scales: ClassVar[bool] = True

    @property
    def levels(self) -> int:
        """How many values a code can take."""
        return 2**self.bits

    @property
    def zero(self) -> float:
        """The code that stands for weight 0 where groups have no zeros of their own; between two codes."""
        return (self.levels - 1) / 2

    def fitted_together(self, columns: int, group: int) -> int:
        """Consecutive inputs of rows of `columns` whose scales are fitted at once."""
        return group

    @torch.no_grad()
    def misfit(self, weight: torch.Tensor, group_size: int) -> str:
        """Why float16 scales cannot hold weight (out, in), rotated or not; "" where they can.

        Scales below SMALLEST_SCALE are raised to it: too far where that would double the squared error of rounding.
        """
        limit = torch.finfo(torch.float16).max
        length, squares, raised = 0.0, 0.0, 0.0
        for rows in row_chunks(weight):
            groups = grouped(weight[rows].float(), group_size)
            scale = groups.abs().amax(-1) * 2 / self.levels
            length = math.hypot(length, groups.norm().item())
            squares += scale.square().sum().item()
            raised += scale.clamp_min(SMALLEST_SCALE).square().sum().item()
        # No rotation makes a weight larger than the length of all of them.
        if length * 2 / self.levels > limit:
            return "its weights are too large for scales in float16"
        if raised > 2 * squares:
            return "its weights are too small for scales in float16"
        return ""

    @torch.no_grad()
    def fit(
        self,
        weight: torch.Tensor,
        group_size: int,
        method: Literal["search", "absmax"] = "search",
        importance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scales, zeros or None), both (out, groups) float32, for weight (out, in); group_size 0: one group a row.

        absmax: the outermost bin ends at the largest weight (ParetoQ, UPQ section 3.2); where groups have zeros the
        range of the weights is divided evenly. search: the share of that of least squared error, each input weighted
        by importance (in,), the mean square of its activation.
        """
        weighting = None if importance is None else grouped(importance.float()[None], group_size)
        fitted = [
            self.fit_groups(grouped(weight[rows].float(), group_size), method, weighting)
            for rows in row_chunks(weight)
        ]
        scale = torch.cat([scale for scale, _ in fitted])
        zeros = [zeros for _, zeros in fitted if zeros is not None]
        return scale, torch.cat(zeros) if zeros else None

    def fit_groups(
        self, groups: torch.Tensor, method: str, weighting: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scales, zeros or None), (out, groups), of groups (out, groups, inputs) and their weighting (1, groups,
        inputs): those of the better one of the grid's ranges.
        """
        best = torch.full(groups.shape[:2], torch.inf, device=groups.device)
        scale, zeros = torch.ones_like(best), torch.zeros_like(best) if self.has_zeros else None
        for low, high in self.ranges(groups):
            share = torch.ones_like(high)
            if method == "search":
                share = self._search_share(groups, low, high, weighting)
            found, own = self.of_range(low * share, high * share)
            error = self.error(groups, found, own, weighting)
            better = ~(
                error >= best
            )  # what is not a number counts as better, for others to find it
            best, scale = torch.where(better, error, best), torch.where(better, found, scale)
            if zeros is not None and own is not None:
                zeros = torch.where(better, own, zeros)
        return scale, zeros

    def ranges(self, groups: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The pairs (lowest, highest weight), (out, groups), that the levels of groups may be spread over."""
        largest = groups.abs().amax(-1)
        return [(-largest, largest)]

    def of_range(
        self, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales, rounded as they are stored, and zeros of groups from low to high."""
        return storable((high - low) / self.levels), None

    def settled(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scales, offsets or None), (out, groups) float32, at which weights of latent scales and zeros are rounded."""
        return scale.clamp_min(SMALLEST_SCALE), None

    def stored(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As settled, at scales and offsets as a packed weight has them."""
        return self.settled(storable(scale), zero)

    def error(
        self,
        groups: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        weighting: torch.Tensor | None,
    ) -> torch.Tensor:
        """The weighted squared error (out, groups) of rounding groups (out, groups, inputs)."""
        return self.settled_error(groups, *self.settled(scale, zero), weighting)

    def settled_error(
        self,
        groups: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        weighting: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `error`, at scales and offsets (out, groups) that are taken as they are."""
        rounded = self.round(groups, scale.unsqueeze(-1), unsqueezed(offset))
        error = rounded.sub_(groups).square_()
        return (error if weighting is None else error.mul_(weighting)).sum(-1)

    def _search_share(
        self,
        groups: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        weighting: torch.Tensor | None,
    ) -> torch.Tensor:
        best = torch.ones_like(high)
        best_error = torch.full_like(high, torch.inf)

        def keep_better(shares: torch.Tensor) -> None:
            error = self.error(groups, *self.of_range(low * shares, high * shares), weighting)
            torch.where(error < best_error, shares, best, out=best)
            torch.minimum(error, best_error, out=best_error)

        for share in SEARCH_SHARES:
            keep_better(torch.full_like(high, share))
        coarse = best.clone()
        for offset in REFINE_SHARES:
            keep_better(coarse + offset)
        return best

    def round(
        self, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The nearest level of every weight; settled scale and offset broadcast against it. A new tensor."""
        if offset is None:
            half = self.levels // 2
            return (weight / scale).floor_().clamp_(-half, half - 1).add_(0.5).mul_(scale)
        steps = (weight + offset).div_(scale).add_(0.5).floor_().clamp_(0, self.levels - 1)
        return steps.mul_(scale).sub_(offset)

    def encode(
        self, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Codes (out, in) uint8 of the levels that `round` gives; settled scale and offset are (out, groups). A weight
        on a border takes the upper level.
        """
        rows, columns = weight.shape
        steps, scale = weight.float().view(*scale.shape, -1), scale.float().unsqueeze(-1)
        if offset is None:  # an integer added before the floor could round up to the next code
            steps = (steps / scale).floor_().add_(self.levels // 2)
        else:
            steps = (steps + offset.unsqueeze(-1)).div_(scale).add_(0.5).floor_()
        return steps.clamp_(0, self.levels - 1).to(torch.uint8).view(rows, columns)

    def pack(
        self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
    ) -> PackedWeight:
        """Quantize and pack weight (out, in) with scale and zero (out, groups); scales are stored as float16."""
        scale, offset = self.stored(scale, zero)
        codes = pack(self.encode(weight, scale, offset), self.bits)
        return PackedWeight(codes, scale.half(), self.bits, self.zero)


def row_chunks(weight: torch.Tensor) -> list[slice]:
    """Slices of the rows of weight (out, in) to work on one after the other; all at once on a GPU."""
    rows, columns = weight.shape
    step = rows if weight.is_cuda else CHUNK_WEIGHTS // max(1, columns)
    step = max(1, step)
    return [slice(start, start + step) for start in range(0, max(1, rows), step)]


def storable(scale: torch.Tensor) -> torch.Tensor:
    """Scales as the format stores them: float16 values not below SMALLEST_SCALE, in float32."""
    return scale.float().clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max).half().float()


def grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """weight (rows, in) as (rows, groups, group_size); group_size 0: one group a row."""
    rows, columns = weight.shape
    return weight.reshape(rows, -1, group_size or columns)


def unsqueezed(offset: torch.Tensor | None) -> torch.Tensor | None:
    """Offsets that broadcast against the inputs of their groups, or None."""
    return None if offset is None else offset.unsqueeze(-1)


INT4 = Grid(4)
INT2 = Grid(2)
