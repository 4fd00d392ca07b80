"""The types of tensors in GGUF that we write, and which of them holds a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.packing import LARGEST_BLOCK, PackedWeight


@dataclass(frozen=True)
class Kind:
    """A type of GGUF. number: as files name it; file_type: as general.file_type names a file of mostly this type.

    block: weights that share a scale, which take block_bytes. least, most: what the whole number in scale * number may
    be, for types that are made so.
    """

    name: str
    number: int
    file_type: int
    block: int
    block_bytes: int
    least: int = 0
    most: int = 0

    @property
    def bits(self) -> float:
        """Bits of a weight, its share of the scales included."""
        return 8 * self.block_bytes / self.block

    def size_bytes(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape, whose rows are whole blocks."""
        count = 1
        for width in shape:
            count *= width
        return count // self.block * self.block_bytes


F32 = Kind("F32", 0, 0, 1, 4)
F16 = Kind("F16", 1, 1, 1, 2)
BF16 = Kind("BF16", 30, 32, 1, 2)
#: Two bits, d * (code - 1); with d = -scale that is scale * number for -2 to 1. gguf-py 0.19 does not know it.
Q2_0 = Kind("Q2_0", 42, 41, 64, 18, -2, 1)
Q4_0 = Kind("Q4_0", 2, 2, 32, 18, -8, 7)
Q5_0 = Kind("Q5_0", 6, 8, 32, 22, -16, 15)
Q8_0 = Kind("Q8_0", 8, 7, 32, 34, -128, 127)
#: Two levels of scales; a block is LARGEST_BLOCK weights.
Q2_K = Kind("Q2_K", 10, 10, LARGEST_BLOCK, 84)

KINDS = {kind.number: kind for kind in (F32, F16, BF16, Q2_0, Q4_0, Q5_0, Q8_0, Q2_K)}
#: Types that are a float16 scale and a whole number for each weight, the smallest first.
WHOLE = (Q2_0, Q4_0, Q5_0, Q8_0)
#: How plain tensors are stored; all of these are exact.
PLAIN = {torch.float16: F16, torch.bfloat16: BF16, torch.float32: F32}


def kind_of_plain(tensor: torch.Tensor) -> Kind:
    """The type of a parameter that is not packed: F32 for norms and biases, as every program expects it there."""
    return F32 if tensor.dim() == 1 else PLAIN[tensor.dtype]


def kind_of_packed(packed: PackedWeight) -> tuple[Kind, str]:
    """(the type, why it is not exact): the smallest type that holds the packed matrix exactly, and ""; else F16."""
    columns = packed.shape[1]
    group = columns // packed.scale.shape[1]
    if packed.steps is not None:
        if group == LARGEST_BLOCK:
            return Q2_K, ""
        return (
            F16,
            f"rows of {columns} have blocks of {group} with two levels of scales; Q2_K has {LARGEST_BLOCK}",
        )
    least, most = whole_range(packed)
    fitting = [kind for kind in WHOLE if kind.least <= least and most <= kind.most]
    if not fitting:
        return F16, f"no type has whole numbers from {least} to {most}"
    if not torch.equal(whole_scale(packed).float() * divisor(packed), packed.scale.float()):
        return F16, "half of its smallest scale is no float16"
    for kind in fitting:
        if group % kind.block == 0:
            return kind, ""
    return F16, f"{fitting[-1].block} does not divide its groups of {group}"


def divisor(packed: PackedWeight) -> int:
    """2 where levels lie between two codes, as for the zeros 7.5 and 1.5: twice them are whole numbers. Else 1."""
    return 1 if packed.zeros is not None or float(packed.zero).is_integer() else 2


def whole_scale(packed: PackedWeight) -> torch.Tensor:
    """What the whole numbers are multiplied by: (out, groups) float16."""
    return (packed.scale.float() / divisor(packed)).half()


def whole_range(packed: PackedWeight) -> tuple[int, int]:
    """The least and the largest whole number that a weight of this grid can have."""
    last = 2**packed.bits - 1
    if packed.zeros is not None:
        return -int(packed.zeros.max()), last - int(packed.zeros.min())
    times = divisor(packed)
    return int(-packed.zero * times), int((last - packed.zero) * times)
