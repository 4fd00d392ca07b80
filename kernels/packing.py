"""The one bit layout of packed codes (format version 1): along the input dimension, lowest bits first.

A byte holds 8 / bits codes; code i of a row sits in byte i // (8 / bits), at bit bits * (i % (8 / bits)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from kernels.transform import Transform

#: Inputs that share a pair of steps, where scales have two levels.
NESTED_GROUP = 16
#: Inputs of a block at most, where scales have two levels.
LARGEST_BLOCK = 256
#: Fields of a PackedWeight that hold a tensor, or None.
TENSORS = ("codes", "scale", "zeros", "minimum", "steps")


@dataclass(frozen=True)
class PackedWeight:
    """weight = scale * (code - zero), per output row and group of consecutive inputs.

    codes: (out, in * bits / 8) uint8; scale: (out, groups) float16 or float32, of any sign; zero: the grid's constant,
    or where every group has its own, zeros: (out, groups) uint8. transform: what surrounds the matrix, see
    kernels.transform.

    With two levels of scales (GGUF's Q2_K) weight = scale * (steps % 16) * code - minimum * (steps // 16): scale and
    minimum, (out, blocks) float16, are of blocks of many groups; steps, (out, in / 16) uint8, are of groups of
    NESTED_GROUP inputs. zero has no meaning then.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bits: int
    zero: float
    zeros: torch.Tensor | None = None
    transform: Transform | None = None
    minimum: torch.Tensor | None = None
    steps: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors and its transform in memory."""
        transform = self.transform.size_bytes if self.transform else 0
        return sum(tensor.nbytes for tensor in self.tensors.values()) + transform

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there, by the names of their fields; those of the transform are not among them."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def rows(self, wanted: slice) -> PackedWeight:
        """The packed matrix of some rows; without the transform, which is of all rows."""
        parts = {name: tensor[wanted] for name, tensor in self.tensors.items()}
        return replace(self, transform=None, **parts)

    def to(self, device: torch.device | str) -> PackedWeight:
        """The packed weight with its tensors on a device."""
        parts = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, transform=self.transform and self.transform.to(device), **parts)


def nested_block(columns: int) -> int:
    """Inputs of a block of two-level scales in rows of `columns`: the largest multiple of NESTED_GROUP that divides
    them, up to LARGEST_BLOCK. 256 is GGUF's. ValueError where NESTED_GROUP does not divide the columns.
    """
    if columns % NESTED_GROUP:
        raise ValueError(f"{NESTED_GROUP} does not divide {columns} inputs")
    sizes = range(LARGEST_BLOCK, 0, -NESTED_GROUP)
    return next(size for size in sizes if columns % size == 0)


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
