"""What an artifact is: a manifest, tensors and files, enough to load the model again with no network.

Per packed layer the tensors are `name.codes`, `name.scale` and some of OPTIONAL_PARTS (docs/architecture.md); every
other parameter stands under its own name, losslessly in the smallest float type that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from kernels.packing import PackedWeight

#: 1: linear layers of the decoder blocks are packed. 2: embedding and head are as well, 8 bits each. 3: layers have
#: transforms or a zero for each group.
FORMAT_VERSIONS = (1, 2, 3)
#: Tensors that a packed layer may have beside codes and scale, with the type in which they are stored.
OPTIONAL_PARTS = {
    "zero": torch.uint8,
    "scale_in": torch.float16,
    "scale_out": torch.float16,
    "affine": torch.float32,
    "shift": torch.float32,
}


@dataclass(frozen=True)
class Artifact:
    """One quantized model. precision: "INT4" or "INT2"; manifest is JSON-able."""

    precision: str
    manifest: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    files: dict[str, bytes]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors and files."""
        tensors = sum(tensor.nbytes for tensor in self.tensors.values())
        return tensors + sum(map(len, self.files.values()))


def as_stored(packed: PackedWeight) -> PackedWeight:
    """The same weight with the tensors of its transform in the types of the format."""
    if packed.transform is None:
        return packed
    parts = packed.transform.tensors.items()
    stored = {name: tensor.to(OPTIONAL_PARTS[name]).contiguous() for name, tensor in parts}
    return replace(packed, transform=replace(packed.transform, **stored))


def parts_of(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """The tensors of a packed layer by the last part of their names."""
    parts = {"codes": packed.codes, "scale": packed.scale}
    if packed.zeros is not None:
        parts["zero"] = packed.zeros
    return parts | (packed.transform.tensors if packed.transform else {})
