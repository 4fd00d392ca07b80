"""Fit, encode and decode for the zero-free odd grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from kernels.packing import PackedWeight, pack
from kernels.reference import dequantize

#: Smallest scale: half of it is still a normal float16, so that every exporter of the format is loss-free.
SMALLEST_SCALE = 2.0**-13
#: Shares of the largest weight that the error search tries as clipping point; the best is refined once.
SEARCH_SHARES = tuple(0.16 + 0.06 * step for step in range(15))
REFINE_SHARES = (-0.04, -0.02, 0.02, 0.04)
#: Weights that a CPU works on at once: few enough that the passes over them stay in its cache.
CHUNK_WEIGHTS = 65_536


@dataclass(frozen=True)
class Grid:
    """2**bits levels at odd multiples of half a scale, none of them zero."""

    bits: int

    @property
    def levels(self) -> int:
        """How many values a code can take."""
        return 2**self.bits

    @property
    def zero(self) -> float:
        """The code that would stand for weight 0; always between two codes."""
        return (self.levels - 1) / 2

    @torch.no_grad()
    def fit(
        self,
        weight: torch.Tensor,
        group_size: int,
        method: Literal["search", "absmax"] = "search",
        importance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scales (out, groups) float32 for weight (out, in); group_size 0 means one group per row.

        absmax: the outermost bin ends at the largest weight (ParetoQ, UPQ section 3.2). search: the clipping
        point of least squared error, each input weighted by importance (in,), the mean square of its activation.
        """
        weighting = None if importance is None else _grouped(importance.float()[None], group_size)
        scales = [
            self._fit_rows(_grouped(weight[rows].float(), group_size), method, weighting)
            for rows in row_chunks(weight)
        ]
        return storable(torch.cat(scales))

    def _fit_rows(
        self, groups: torch.Tensor, method: str, weighting: torch.Tensor | None
    ) -> torch.Tensor:
        full_scale = groups.abs().amax(-1) * 2 / self.levels
        if method == "search":
            full_scale = full_scale * self._search_share(groups, full_scale, weighting)
        return full_scale

    def _search_share(
        self, groups: torch.Tensor, full_scale: torch.Tensor, weighting: torch.Tensor | None
    ) -> torch.Tensor:
        best = torch.ones_like(full_scale)
        best_error = torch.full_like(full_scale, torch.inf)

        def keep_better(shares: torch.Tensor) -> None:
            scale = (full_scale * shares).unsqueeze(-1).clamp_min(SMALLEST_SCALE)
            error = (self._round(groups, scale) - groups).square_()
            error = (error if weighting is None else error.mul_(weighting)).sum(-1)
            torch.where(error < best_error, shares, best, out=best)
            torch.minimum(error, best_error, out=best_error)

        for share in SEARCH_SHARES:
            keep_better(torch.full_like(full_scale, share))
        coarse = best.clone()
        for offset in REFINE_SHARES:
            keep_better(coarse + offset)
        return best

    def _round(self, groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        code = (groups / scale).floor_().clamp_(-self.levels // 2, self.levels // 2 - 1)
        return code.add_(0.5).mul_(scale)

    def encode(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes (out, in) uint8 of the nearest levels; a weight on a border takes the upper level."""
        steps = _by_scale(weight.float(), scale.float()).floor_().add_(self.levels // 2)
        return steps.clamp_(0, self.levels - 1).to(torch.uint8)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Weight (out, in) float32 of codes (out, in) and scale (out, groups)."""
        rows, columns = codes.shape
        levels = (codes.float() - self.zero).view(rows, scale.shape[1], -1)
        return (levels * scale.float().unsqueeze(-1)).view(rows, columns)

    def pack(self, weight: torch.Tensor, scale: torch.Tensor) -> PackedWeight:
        """Quantize and pack weight (out, in) with scale (out, groups), stored as float16."""
        stored = storable(scale).half()
        codes = pack(self.encode(weight, stored), self.bits)
        return PackedWeight(codes, stored, self.bits, self.zero)

    def round_trip(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The float32 weight (out, in) that the packed form of `weight` stands for."""
        return dequantize(self.pack(weight, scale))


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


def _by_scale(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    return (weight.view(rows, scale.shape[1], -1) / scale.unsqueeze(-1)).view(rows, columns)


#: Of the input embedding and the output head, never of a layer that is trained.
INT8 = Grid(8)
INT4 = Grid(4)
INT2 = Grid(2)
GRIDS = {"INT4": INT4, "INT2": INT2}
