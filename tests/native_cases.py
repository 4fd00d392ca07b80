"""Activations in 8 bits as the C kernels round them, and a transformers model that computes with them."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernels import cpu, reference
from upq.layers import PackedLinear, packed_layers, replace_module, swap_linears
from upq.quantizers import Grid
from upq.structure import plan_layers


def rounded(inputs: torch.Tensor, span: int) -> torch.Tensor:
    """inputs (tokens, columns) float32, each span of a token rounded to 8 bits with a scale of its own."""
    tokens, columns = inputs.shape
    whole = F.pad(inputs, (0, cpu.padded(columns) - columns)).view(tokens, -1, span)
    largest = whole.abs().amax(-1, keepdim=True)
    codes = torch.round(whole * torch.where(largest > 0, 127 / largest, 0))
    return (codes * (largest / 127)).view(tokens, -1)[:, :columns]


class RoundedLinear(nn.Module):
    """A packed layer in float32 on rounded activations: what the C kernels compute."""

    def __init__(self, layer: PackedLinear, span: int) -> None:
        super().__init__()
        self.weight, self.span = reference.dequantize(layer.packed), span
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        seen = inputs
        if self.span:
            seen = rounded(inputs.flatten(0, -2), self.span).view_as(inputs)
        return F.linear(seen, self.weight, self.bias)


def quantized(model: Any, bits: int, group_size: int = 64) -> Any:
    """A copy of a float model with every layer of its blocks rounded to the nearest code."""
    model, grid = copy.deepcopy(model), Grid(bits)
    names = [one.name for one in plan_layers(model, group_size) if one.quantize]

    def packed(_: str, linear: nn.Linear) -> PackedLinear:
        scale = grid.fit(linear.weight, group_size)
        return PackedLinear(grid.pack(linear.weight, scale), linear.bias)

    swap_linears(model, names, packed)
    return model


def in_plain_torch(model: Any, span: int) -> Any:
    """The same packed model, computing in plain torch what the C kernels compute on spans of this size (0: exactly)."""
    model = copy.deepcopy(model)
    for name, layer in list(packed_layers(model)):
        replace_module(model, name, RoundedLinear(layer, span))
    return model
