"""The tensors of a GGUF: which parameter each one is, its name, its type and the order of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import torch

from kernels.packing import PackedWeight
from upq.export.formats import cannot_export
from upq.export.gguf_architecture import architecture_of, rope_factors
from upq.export.gguf_blocks import reordered
from upq.export.gguf_kinds import Kind, kind_of_packed, kind_of_plain
from upq.export.model import PackedModel

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. module: the packed layer that it is, or "" for a parameter as it is.

    rounded: why its type does not hold it exactly, or "". order: which row of the layer comes where, None for the
    layer's own order.
    """

    name: str
    kind: Kind
    weight: PackedWeight | torch.Tensor
    module: str = ""
    rounded: str = ""
    order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of a weight, or the shape of a plain tensor."""
        return tuple(self.weight.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file, without padding."""
        return self.kind.size_bytes(self.shape)

    def content(self) -> PackedWeight | torch.Tensor:
        """The weight with its rows in the order of the file."""
        return self.weight if self.order is None else reordered(self.weight, self.order)

    def wanted(self, model: PackedModel) -> torch.Tensor:
        """What the tensor has to decode to, in float32, by the artifact's own decoding."""
        plain = self.weight.float() if isinstance(self.weight, torch.Tensor) else None
        weight = model.weight(self.module) if plain is None else plain
        return weight if self.order is None else weight[self.order]


def entries_of(model: PackedModel, config: Any) -> list[Entry]:
    """All tensors of the file. Raises UserError("cannot_export") for one that llama.cpp has no place for."""
    _require_no_rotation(model)
    names = gguf.get_tensor_name_map(architecture_of(config), config.num_hidden_layers)
    found = []
    for module, packed in model.layers.items():
        kind, rounded = kind_of_packed(packed)
        name, order = _name(names, f"{module}.weight"), _order(f"{module}.weight", packed, config)
        found.append(Entry(name, kind, packed, module, rounded, order))
    for parameter, tensor in model.plain.items():
        name, order = _name(names, parameter), _order(parameter, tensor, config)
        found.append(Entry(name, kind_of_plain(tensor), tensor, order=order))
    if (factors := rope_factors(config)) is not None:
        found.append(Entry(ROPE_FACTORS, kind_of_plain(factors), factors))
    return found


def _require_no_rotation(model: PackedModel) -> None:
    rotated = [name for name, packed in model.layers.items() if packed.transform]
    if rotated:
        raise cannot_export(
            f"{len(rotated)} layers are computed in a rotated space ({rotated[0]} is the first), and no type of GGUF"
            " holds a rotation.",
            "Quantize again with the method portable_upq, or take the safetensors format.",
        )


def _name(names: gguf.TensorNameMap, parameter: str) -> str:
    name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise cannot_export(f"llama.cpp has no place for {parameter} in a model of this kind.")
    return name


def _order(parameter: str, weight: PackedWeight | torch.Tensor, config: Any) -> torch.Tensor | None:
    """llama.cpp's Llama has the two features that a rotary position turns beside each other, transformers half a head
    apart: the order (out,) of the rows of queries and keys.
    """
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(parameter.split(".")[-2])
    if architecture_of(config) != gguf.MODEL_ARCH.LLAMA or heads is None:
        return None
    return torch.arange(weight.shape[0]).view(heads, 2, -1).transpose(1, 2).flatten()
