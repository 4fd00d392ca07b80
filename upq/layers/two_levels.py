"""The grid of GGUF's Q2_K: groups of 16 weights whose scales and minimums are few-bit steps of their block's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from kernels.packing import NESTED_GROUP, PackedWeight, nested_block, pack
from upq.layers.grid import SEARCH_SHARES, Grid

#: Steps go up to this; those of a scale begin at 1, so that every scale is positive.
MOST_STEPS = 15
#: Smallest scale and minimum of a block: the smallest normal float16.
SMALLEST = 2.0**-14
#: How often scale and minimum of a group are fitted to its codes and its codes to them, for every share of the range.
REFITS = 2
#: What is tried beside a group's steps of scale and minimum when those of its block are settled.
NEIGHBOURS = [(scale, minimum) for scale in (-1, 0, 1) for minimum in (-1, 0, 1)]


class Steps(NamedTuple):
    """scale, minimum: (out, blocks, 1) float32, of blocks, float16 values; scale_steps, minimum_steps: (out, blocks,
    groups of a block) float32, whole.
    """

    scale: torch.Tensor
    minimum: torch.Tensor
    scale_steps: torch.Tensor
    minimum_steps: torch.Tensor

    @staticmethod
    def of(scale: torch.Tensor, offset: torch.Tensor) -> Steps:
        """The nearest steps to scale and offset (out, groups); the largest ones of a block become MOST_STEPS steps."""
        blocks = len(scale), -1, nested_block(scale.shape[1] * NESTED_GROUP) // NESTED_GROUP
        scale, offset = scale.reshape(blocks), offset.clamp_min(0).reshape(blocks)
        of_scale, of_offset = _unit(scale), _unit(offset)
        scale_steps = (scale / of_scale).round_().clamp_(1, MOST_STEPS)
        return Steps(
            of_scale, of_offset, scale_steps, (offset / of_offset).round_().clamp_(0, MOST_STEPS)
        )

    def group(self, number: int) -> tuple[torch.Tensor, ...]:
        """(scale, minimum, scale_steps, minimum_steps), (out,), of one group of a row."""
        block, inside = divmod(number, self.scale_steps.shape[2])
        units = self.scale[:, block, 0], self.minimum[:, block, 0]
        return *units, self.scale_steps[:, block, inside], self.minimum_steps[:, block, inside]

    def of_group(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, offset), (out,), of one group of a row, settled."""
        scale, minimum, scale_steps, minimum_steps = self.group(number)
        return scale * scale_steps, minimum * minimum_steps

    @property
    def settled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scales, offsets), (out, groups) float32, exact products."""
        return (self.scale * self.scale_steps).flatten(1), (
            self.minimum * self.minimum_steps
        ).flatten(1)

    @property
    def packed(self) -> torch.Tensor:
        """(out, groups) uint8, as kernels.packing stores them."""
        return (self.scale_steps + 16 * self.minimum_steps).flatten(1).to(torch.uint8)


def _unit(values: torch.Tensor) -> torch.Tensor:
    """What a step of a block's values (out, blocks, groups) is worth, as stored: (out, blocks, 1) float32."""
    largest = values.amax(-1, keepdim=True) / MOST_STEPS
    return largest.clamp(SMALLEST, torch.finfo(torch.float16).max).half().float()


@dataclass(frozen=True)
class TwoLevelGrid(Grid):
    """scale * code - offset in groups of NESTED_GROUP; a block of up to 16 groups stores its float16 scale and minimum
    and 4 bits of each for every group. A latent's scale and zero are of groups and real: offset = scale * zero.
    """

    kind: ClassVar[str] = "q2_k"
    has_zeros: ClassVar[bool] = True
    trains_zeros: ClassVar[bool] = True
    refits_scales: ClassVar[bool] = False

    def fitted_together(self, columns: int, group: int) -> int:
        """A block, whose groups share their units."""
        return nested_block(columns)

    def fit_groups(
        self, groups: torch.Tensor, method: str, weighting: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scales, zeros), (out, groups), settled; of groups (out, groups, NESTED_GROUP), whole blocks."""
        low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
        best = torch.full_like(high, torch.inf)
        scale, offset = torch.ones_like(high), torch.zeros_like(high)
        for share in SEARCH_SHARES if method == "search" else (1.0,):
            tried = (high - low).mul(share / (self.levels - 1)).clamp_min_(SMALLEST), -low * share
            for _ in range(REFITS if method == "search" else 0):
                tried = self._refitted(groups, *tried, weighting)
            error = self.settled_error(groups, *tried, weighting)
            better = error < best
            best = torch.where(better, error, best)
            scale, offset = (
                torch.where(better, tried[0], scale),
                torch.where(better, tried[1], offset),
            )
        steps = Steps.of(scale, offset)
        if method == "search":
            steps = self._best_neighbours(groups, steps, weighting)
        scale, offset = steps.settled
        return scale, offset / scale

    def _refitted(
        self,
        groups: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor,
        weighting: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and offsets of least squares for the codes that groups have at these."""
        codes = self._codes(groups, scale, offset)
        weights = torch.ones_like(groups[:1]) if weighting is None else weighting
        weighted = codes * weights
        total, first, second = weights.sum(-1), weighted.sum(-1), (weighted * codes).sum(-1)
        value, product = (groups * weights).sum(-1), (groups * weighted).sum(-1)
        spread = total * second - first.square()
        fitted = (total * product - first * value) / spread
        below = (fitted * first - value) / total
        through_zero = product / second  # where the minimum would have to be positive
        fitted, below = torch.where(below > 0, fitted, through_zero), below.clamp_min(0)
        usable = (spread > 0) & (fitted > SMALLEST) & below.isfinite()
        return torch.where(usable, fitted, scale), torch.where(usable, below, offset)

    def _codes(
        self, groups: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor
    ) -> torch.Tensor:
        steps = (groups + offset.unsqueeze(-1)).div_(scale.unsqueeze(-1)).add_(0.5).floor_()
        return steps.clamp_(0, self.levels - 1)

    def _best_neighbours(
        self, groups: torch.Tensor, steps: Steps, weighting: torch.Tensor | None
    ) -> Steps:
        """The steps of least error one up or down from these; the largest of a block stay, and with them its unit."""
        best, found = torch.full(groups.shape[:2], torch.inf, device=groups.device), steps
        shape = steps.scale_steps.shape
        for up, higher in NEIGHBOURS:
            tried = steps._replace(
                scale_steps=_moved(steps.scale_steps, up, 1),
                minimum_steps=_moved(steps.minimum_steps, higher, 0),
            )
            error = self.settled_error(groups, *tried.settled, weighting)
            better = error < best
            best, mask = torch.where(better, error, best), better.view(shape)
            found = found._replace(
                scale_steps=torch.where(mask, tried.scale_steps, found.scale_steps),
                minimum_steps=torch.where(mask, tried.minimum_steps, found.minimum_steps),
            )
        return found

    def settled(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(scales, offsets) of the nearest steps."""
        assert zero is not None
        return Steps.of(scale, scale * zero).settled

    def stored(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As settled, whose blocks' scales are float16 already."""
        return self.settled(scale, zero)

    def pack(
        self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
    ) -> PackedWeight:
        """Quantize and pack weight (out, in) with scale and zero (out, groups)."""
        assert zero is not None
        steps = Steps.of(scale, scale * zero)
        codes = pack(self.encode(weight, *steps.settled), self.bits)
        return PackedWeight(
            codes,
            steps.scale.squeeze(-1).half(),
            self.bits,
            zero=0.0,
            minimum=steps.minimum.squeeze(-1).half(),
            steps=steps.packed,
        )


def _moved(steps: torch.Tensor, by: int, least: int) -> torch.Tensor:
    """Steps some up or down; those of the largest of a block stay."""
    return torch.where(steps == MOST_STEPS, steps, (steps + by).clamp(least, MOST_STEPS))
