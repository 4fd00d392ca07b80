"""What surrounds a packed matrix that was quantized in a transformed space (UniSVQ sections 3.1 and 3.2, QuaRot).

    y = scale_out * H_out (W A' H_in (scale_in * x) + (H_in (scale_in * x) . shift))

H is the orthonormal block-diagonal Hadamard matrix, A' applies the 4 x 4 affine map to every four inputs: a packed
group of four codes z then stands for A z + b. Weights stay packed; all of it acts on activations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F

#: Inputs that share a vector of the affine lattice (d of UniSVQ).
LATTICE = 4


@lru_cache(maxsize=32)
def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The orthonormal Sylvester-Hadamard matrix (size, size), symmetric; size is a power of two."""
    with torch.inference_mode(False):  # kept, and training may use what decoding made
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return (matrix / size**0.5).to(device, dtype)


def hadamard_block(width: int, largest: int) -> int:
    """The largest power of two that divides width and is at most `largest`."""
    return min(width & -width, 1 << (largest.bit_length() - 1))


def hadamard(values: torch.Tensor, block: int) -> torch.Tensor:
    """The block Hadamard of the last dimension (..., width), width a multiple of block; block 1 changes nothing."""
    if block <= 1:
        return values
    matrix = hadamard_matrix(block, values.dtype, values.device)
    return F.linear(values.unflatten(-1, (-1, block)), matrix).flatten(-2)


def by_four(values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Every four of the last dimension (..., width), as a column, times matrix (4, 4)."""
    return F.linear(values.unflatten(-1, (-1, LATTICE)), matrix).flatten(-2)


@dataclass(frozen=True)
class Transform:
    """The surroundings of one packed weight (out, in).

    block_in, block_out: sizes of the Hadamard blocks, 1 for none. scale_in: (in,), scale_out: (out,), signs or tuned
    vectors, None for ones. affine: (4, 4) and shift: (4,), the lattice of UniSVQ, None for the identity and zero.
    """

    block_in: int = 1
    block_out: int = 1
    scale_in: torch.Tensor | None = None
    scale_out: torch.Tensor | None = None
    affine: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The vectors and matrices that are there, by name."""
        named = {name: getattr(self, name) for name in PARTS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def size_bytes(self) -> int:
        """Bytes of its vectors and matrices."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device | str) -> Transform:
        """The transform with its vectors and matrices on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def inputs(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(what the packed matrix multiplies (..., in), what is added to every output (..., 1) or None)."""
        if self.scale_in is not None:
            values = values * self.scale_in.to(values.dtype)
        values = hadamard(values, self.block_in)
        added = None
        if self.shift is not None:
            groups = values.unflatten(-1, (-1, LATTICE)).sum(-2)
            added = (groups * self.shift.to(values.dtype)).sum(-1, keepdim=True)
        if self.affine is not None:
            values = by_four(values, self.affine.T.to(values.dtype))
        return values, added

    def same_inputs(self, other: Transform) -> bool:
        """Whether both do the same to inputs. It compares tensors, and so waits for a GPU."""
        mine, theirs = (replace(one, block_out=1, scale_out=None) for one in (self, other))
        return (
            mine.block_in == theirs.block_in
            and mine.tensors.keys() == theirs.tensors.keys()
            and all(torch.equal(part, theirs.tensors[name]) for name, part in mine.tensors.items())
        )

    def outputs(self, values: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """The layer's outputs (..., out) of the packed matrix's products and the second result of `inputs`."""
        values = values if added is None else values + added
        values = hadamard(values, self.block_out)
        return values if self.scale_out is None else values * self.scale_out.to(values.dtype)

    def rotate(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix (out, in) that stands for `weight` between signs and Hadamards; the lattice is not in it."""
        if self.scale_in is not None:
            weight = weight / self.scale_in
        if self.scale_out is not None:
            weight = weight / self.scale_out.unsqueeze(1)
        return hadamard(hadamard(weight, self.block_in).T, self.block_out).T.contiguous()

    def dense(self, packed: torch.Tensor) -> torch.Tensor:
        """The weight (out, in) of the whole, `packed` being the dequantized matrix (out, in)."""
        if self.affine is not None:
            packed = by_four(packed, self.affine.to(packed.dtype))
        if self.shift is not None:
            packed = packed + self.shift.to(packed.dtype).repeat(packed.shape[1] // LATTICE)
        weight = hadamard(hadamard(packed, self.block_in).T, self.block_out).T
        if self.scale_in is not None:
            weight = weight * self.scale_in.to(weight.dtype)
        if self.scale_out is not None:
            weight = weight * self.scale_out.to(weight.dtype).unsqueeze(1)
        return weight.contiguous()


#: Names of a transform's vectors and matrices.
PARTS = tuple(field.name for field in fields(Transform) if not field.name.startswith("block_"))


def part_shapes(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of PARTS in the transform of a weight (rows, columns)."""
    return {
        "scale_in": (columns,),
        "scale_out": (rows,),
        "affine": (LATTICE, LATTICE),
        "shift": (LATTICE,),
    }
