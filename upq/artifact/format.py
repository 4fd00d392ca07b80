"""What an artifact is: a manifest, tensors and files, enough to load the model again with no network.

Per packed layer the tensors are `name.codes`, `name.scale` and some of upq.artifact.parts.OPTIONAL_PARTS; every
other parameter stands under its own name, losslessly in the smallest float type that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and the store only hands artifacts on
    import torch

#: 1: linear layers of the decoder blocks are packed. 2: embedding and head are as well, 8 bits each. 3: layers have
#: transforms or a zero for each group. 4: zero is a code, scales have either sign; or scales have two levels; an
#: embedding may have 4 bits.
FORMAT_VERSIONS = (1, 2, 3, 4)


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
