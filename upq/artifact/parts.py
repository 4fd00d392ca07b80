"""The tensors of a packed layer as the format stores them."""

from __future__ import annotations

from dataclasses import replace

import torch

from kernels.packing import PackedWeight

#: Tensors that a packed layer may have beside codes and scale, with the type in which they are stored.
OPTIONAL_PARTS = {
    "zero": torch.uint8,
    "minimum": torch.float16,
    "steps": torch.uint8,
    "scale_in": torch.float16,
    "scale_out": torch.float16,
    "affine": torch.float32,
    "shift": torch.float32,
}


def as_stored(packed: PackedWeight) -> PackedWeight:
    """The same weight with the tensors of its transform in the types of the format."""
    if packed.transform is None:
        return packed
    parts = packed.transform.tensors.items()
    stored = {name: tensor.to(OPTIONAL_PARTS[name]).contiguous() for name, tensor in parts}
    return replace(packed, transform=replace(packed.transform, **stored))


def parts_of(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """The tensors of a packed layer by the last part of their names."""
    parts = {"zero" if name == "zeros" else name: part for name, part in packed.tensors.items()}
    return parts | (packed.transform.tensors if packed.transform else {})
