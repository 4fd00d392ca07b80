"""Fitting scales and rounding weights for the one family of grids: scale * (code - zero)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
    """2**bits levels, scale * (code - zero).

    Without integer_zero, zero lies in the middle of the codes: odd multiples of half a scale, none of them zero (UPQ,
    ParetoQ). With it, every group has a whole zero of its own between 0 and 2**bits - 1 (EfficientQAT equation 1).
    """

    bits: int
    integer_zero: bool = False

    @property
    def levels(self) -> int:
        """How many values a code can take."""
        return 2**self.bits

    @property
    def zero(self) -> float:
        """The code that stands for weight 0 where groups have no zeros of their own; between two codes."""
        return (self.levels - 1) / 2

    @torch.no_grad()
    def misfit(self, weight: torch.Tensor, group_size: int) -> str:
        """Why float16 scales cannot hold weight (out, in), rotated or not; "" where they can.

        Scales below SMALLEST_SCALE are raised to it: too far where that would double the squared error of rounding.
        """
        limit = torch.finfo(torch.float16).max
        length, squares, raised = 0.0, 0.0, 0.0
        for rows in row_chunks(weight):
            groups = _grouped(weight[rows].float(), group_size)
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

        absmax: the outermost bin ends at the largest weight (ParetoQ, UPQ section 3.2); with integer zeros the range
        of the weights is divided evenly. search: the share of that of least squared error, each input weighted by
        importance (in,), the mean square of its activation.
        """
        weighting = None if importance is None else _grouped(importance.float()[None], group_size)
        fitted = [
            self._fit_rows(_grouped(weight[rows].float(), group_size), method, weighting)
            for rows in row_chunks(weight)
        ]
        scale = torch.cat([scale for scale, _ in fitted])
        zeros = [zeros for _, zeros in fitted if zeros is not None]
        return scale, torch.cat(zeros) if zeros else None

    def _fit_rows(
        self, groups: torch.Tensor, method: str, weighting: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        low, high = -groups.abs().amax(-1), groups.abs().amax(-1)
        if self.integer_zero:
            low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        best = torch.ones_like(high)
        if method == "search":
            best = self._search_share(groups, low, high, weighting)
        return self._of_range(low * best, high * best)

    def _of_range(
        self, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales, rounded as they are stored, and zeros of groups from low to high."""
        if not self.integer_zero:
            return storable((high - low) / self.levels), None
        scale = ((high - low) / (self.levels - 1)).clamp_min(SMALLEST_SCALE)
        return storable(scale), self.whole_zeros(-low / scale)

    def whole_zeros(self, zero: torch.Tensor) -> torch.Tensor:
        """Zeros as they are stored: whole codes."""
        return zero.round().clamp(0, self.levels - 1)

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
            scale, zeros = self._of_range(low * shares, high * shares)
            rounded = self.round(groups, scale.unsqueeze(-1), _unsqueezed(zeros))
            error = rounded.sub_(groups).square_()
            error = (error if weighting is None else error.mul_(weighting)).sum(-1)
            torch.where(error < best_error, shares, best, out=best)
            torch.minimum(error, best_error, out=best_error)

        for share in SEARCH_SHARES:
            keep_better(torch.full_like(high, share))
        coarse = best.clone()
        for offset in REFINE_SHARES:
            keep_better(coarse + offset)
        return best

    def round(
        self, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The nearest level of every weight; scale and zeros broadcast against it. A new tensor."""
        steps = weight / scale
        if zeros is None:
            half = self.levels // 2
            return steps.floor_().clamp_(-half, half - 1).add_(0.5).mul_(scale)
        steps = steps.add_(zeros + 0.5).floor_().clamp_(0, self.levels - 1)
        return steps.sub_(zeros).mul_(scale)

    def encode(
        self, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Codes (out, in) uint8 of the nearest levels; a weight on a border takes the upper level."""
        rows, columns = weight.shape
        steps = weight.float().view(rows, scale.shape[1], -1) / scale.float().unsqueeze(-1)
        if zeros is None:  # an integer added before the floor could round up to the next code
            steps = steps.floor_().add_(self.levels // 2)
        else:
            steps = steps.add_(zeros.unsqueeze(-1) + 0.5).floor_()
        return steps.clamp_(0, self.levels - 1).to(torch.uint8).view(rows, columns)

    def pack(
        self, weight: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None = None
    ) -> PackedWeight:
        """Quantize and pack weight (out, in) with scale and zeros (out, groups); scales are stored as float16."""
        stored = storable(scale).half()
        whole = None if zeros is None else self.whole_zeros(zeros)
        codes = pack(self.encode(weight, stored, whole), self.bits)
        kept = None if whole is None else whole.to(torch.uint8)
        return PackedWeight(codes, stored, self.bits, self.zero, kept)


def row_chunks(weight: torch.Tensor) -> list[slice]:
    """Slices of the rows of weight (out, in) to work on one after the other; all at once on a GPU."""
    rows, columns = weight.shape
    step = rows if weight.is_cuda else CHUNK_WEIGHTS // max(1, columns)
    step = max(1, step)
    return [slice(start, start + step) for start in range(0, max(1, rows), step)]


def storable(scale: torch.Tensor) -> torch.Tensor:
    """Scales as the format stores them: float16 values not below SMALLEST_SCALE, in float32."""
    return scale.float().clamp(SMALLEST_SCALE, torch.finfo(torch.float16).max).half().float()


def _grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.reshape(rows, -1, group_size or columns)


def _unsqueezed(zeros: torch.Tensor | None) -> torch.Tensor | None:
    return None if zeros is None else zeros.unsqueeze(-1)


#: Of the input embedding and the output head, never of a layer that is trained.
INT8 = Grid(8)
INT4 = Grid(4)
INT2 = Grid(2)
