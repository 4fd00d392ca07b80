"""Packed layers in the layout of the kernels, in the place of those that hold them as they are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import kernels
from upq.layers import PackedLinear, packed_layers, replace_module


class ServedLinear(nn.Module):
    """y = x W^T + bias by `kernels.prepare`; for decoding only, as it cannot be stored again."""

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        self.prepared = kernels.prepare(layer.packed)
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out), in the dtype of inputs."""
        outputs = self.prepared(inputs)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)


def prepare_layers(model: nn.Module) -> None:
    """Replace every PackedLinear of a model by its ServedLinear, one at a time, so that little is in memory twice."""
    for name in [name for name, _ in packed_layers(model)]:
        layer: Any = model.get_submodule(name)
        replace_module(model, name, ServedLinear(layer))


def prepared_bytes(model: nn.Module) -> int:
    """What the prepared weights take in memory; they are no buffers of the model."""
    return sum(layer.prepared.size_bytes for layer in _served(model))


def prepared_backends(model: nn.Module) -> list[str]:
    """The names of the kernels that multiply, the most frequent one first; empty without packed layers."""
    return [
        name
        for name, _ in Counter(layer.prepared.backend for layer in _served(model)).most_common()
    ]


def _served(model: nn.Module) -> Iterator[ServedLinear]:
    return (module for module in model.modules() if isinstance(module, ServedLinear))
