"""Grids whose groups have zeros of their own: any whole one, or one of the two beside the middle of the codes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kernels.packing import PackedWeight, pack
from upq.layers.grid import SMALLEST_SCALE, Grid, storable


@dataclass(frozen=True)
class IntegerZeroGrid(Grid):
    """Every group has a whole zero between 0 and 2**bits - 1 (EfficientQAT equation 1)."""

    kind: ClassVar[str] = "integer_zero"
    has_zeros: ClassVar[bool] = True
    trains_zeros: ClassVar[bool] = True

    def ranges(self, groups: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """From the smallest to the largest weight, 0 among them."""
        return [(groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0))]

    def of_range(
        self, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales, rounded as they are stored, and zeros of groups from low to high."""
        scale = ((high - low) / (self.levels - 1)).clamp_min(SMALLEST_SCALE)
        return storable(scale), self.whole_zeros(-low / scale)

    def whole_zeros(self, zero: torch.Tensor) -> torch.Tensor:
        """Zeros as they are stored: whole codes."""
        return zero.round().clamp(0, self.levels - 1)

    def settled(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales, and offsets of whole zeros."""
        assert zero is not None
        scale = scale.clamp_min(SMALLEST_SCALE)
        return scale, scale * self.whole_zeros(zero)

    def pack(
        self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
    ) -> PackedWeight:
        """Quantize and pack weight (out, in) with scale and zero (out, groups); scales are stored as float16."""
        assert zero is not None
        packed = super().pack(weight, scale, zero)
        return replace(packed, zeros=self.whole_zeros(zero).to(torch.uint8))


@dataclass(frozen=True)
class SignedGrid(IntegerZeroGrid):
    """scale * (code - 2**(bits - 1)), the scale of either sign: GGUF's Q4_0 and Q2_0, MLX, compressed-tensors.

    Zero is a level, and one side has a level more. A latent has a positive scale and says by its zero which: a
    negative scale is zero 2**(bits - 1) - 1 with the codes in reverse. The zero is chosen when scales are fitted and
    never trained.
    """

    kind: ClassVar[str] = "signed"
    trains_zeros: ClassVar[bool] = False

    @property
    def zero(self) -> float:
        """The code that stands for weight 0, whatever the scale's sign."""
        return float(self.levels // 2)

    def ranges(self, groups: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The largest weight on the side that has a level more, and on the other one."""
        largest = groups.abs().amax(-1)
        shorter = largest * ((self.zero - 1) / self.zero)
        return [(-largest, shorter), (-shorter, largest)]

    def whole_zeros(self, zero: torch.Tensor) -> torch.Tensor:
        """One of the two zeros beside the middle of the codes."""
        return zero.round().clamp(self.zero - 1, self.zero)

    def pack(
        self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
    ) -> PackedWeight:
        """As the other grids; the zero is stored as the sign of the scale."""
        packed = super().pack(weight, scale, zero)
        assert packed.zeros is not None
        is_reversed = packed.zeros < self.zero
        flips = is_reversed.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        flips = pack(flips * (self.levels - 1), self.bits)
        stored = torch.where(is_reversed, -packed.scale, packed.scale)
        return PackedWeight(packed.codes ^ flips, stored, self.bits, self.zero)


@dataclass(frozen=True)
class ByteGrid(SignedGrid):
    """The signed grid of 8 bits with as many levels on both sides, codes 1 to 255: GGUF's Q8_0."""

    def ranges(self, groups: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The largest weight on both sides, and a level below that none takes."""
        largest = groups.abs().amax(-1)
        return [(-largest * (self.zero / (self.zero - 1)), largest)]

    def whole_zeros(self, zero: torch.Tensor) -> torch.Tensor:
        """The zero of positive scales."""
        return torch.full_like(zero, self.zero)


#: Of the input embedding and the output head, never of a layer that is trained.
INT8 = ByteGrid(8)
