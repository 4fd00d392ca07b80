"""The one bit layout of packed codes (format version 1): along the input dimension, lowest bits first.

A byte holds 8 / bits codes; code i of a row sits in byte i // (8 / bits), at bit bits * (i % (8 / bits)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kernels.transform import Transform


@dataclass(frozen=True)
class PackedWeight:
    """weight = scale * (code - zero), per output row and group of consecutive inputs.

    codes: (out, in * bits / 8) uint8; scale: (out, groups) float16 or float32; zero: the grid's constant, or where
    every group has its own, zeros: (out, groups) uint8. transform: what surrounds the matrix, see kernels.transform.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bits: int
    zero: float
    zeros: torch.Tensor | None = None
    transform: Transform | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def size_bytes(self) -> int:
        """Bytes of codes, scales, zeros and the transform in memory."""
        zeros = 0 if self.zeros is None else self.zeros.nbytes
        transform = self.transform.size_bytes if self.transform else 0
        return self.codes.nbytes + self.scale.nbytes + zeros + transform

    def to(self, device: torch.device | str) -> PackedWeight:
        """The packed weight with its tensors on a device."""
        return replace(
            self,
            codes=self.codes.to(device),
            scale=self.scale.to(device),
            zeros=None if self.zeros is None else self.zeros.to(device),
            transform=self.transform and self.transform.to(device),
        )


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes: (out, in) integers in [0, 2**bits) -> (out, in * bits / 8) uint8. ValueError if bytes do not fill."""
    per_byte = 8 // bits
    rows, columns = codes.shape
    if columns % per_byte:
        raise ValueError(f"{columns} codes of {bits} bits do not fill whole bytes")
    fields = codes.to(torch.uint8).view(rows, columns // per_byte, per_byte)
    packed = fields[..., 0].clone()
    for position in range(1, per_byte):
        packed |= fields[..., position] << (bits * position)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of pack: (out, bytes) uint8 -> (out, in) uint8 codes."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    fields = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return fields.flatten(1)
