"""Activations in 8 bits as the C kernels round them, and a transformers model that computes with them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernels import reference
from kernels.cpu import panels
from kernels.packing import NESTED_GROUP, PackedWeight, nested_block, pack
from kernels.transform import Transform, hadamard_block
from upq.layers import (
    Grid,
    PackedEmbedding,
    PackedLinear,
    packed_layers,
    replace_module,
    swap_linears,
)
from upq.models import plan_layers


def rounded(inputs: torch.Tensor, span: int) -> torch.Tensor:
    """inputs (tokens, columns), each span of a token rounded to 8 bits with a scale of its own, and what is left of
    spans whose squared scale is more than three times the token's mean to 8 bits more.
    """
    tokens, columns = inputs.shape
    whole = F.pad(inputs, (0, panels.padded(columns) - columns)).view(tokens, -1, span)
    largest = whole.abs().amax(-1, keepdim=True)
    scale = largest / 127
    steps = whole * torch.where(scale > 0, 1 / scale, 0)
    codes = torch.round(steps)
    squares = scale.square()
    fine = squares > 3 * squares.mean(1, keepdim=True)
    rest = torch.where(fine, torch.round((steps - codes) * 254), 0)
    return ((codes + rest / 254) * scale).view(tokens, -1)[:, :columns]


class RoundedLinear(nn.Module):
    """A packed layer in float32 on rounded activations: what the C kernels compute."""

    def __init__(self, layer: PackedLinear, span: int) -> None:
        super().__init__()
        self.weight, self.span = reference.dequantize(layer.packed), span
        self.around = layer.packed.transform or Transform()
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        seen, added = self.around.inputs(inputs)
        if self.span:
            seen = rounded(seen.flatten(0, -2), self.span).view_as(inputs)
        outputs = self.around.outputs(F.linear(seen, self.weight), added)
        return outputs if self.bias is None else outputs + self.bias


def quantized(model: Any, bits: int, group_size: int = 64) -> Any:
    """A copy of a float model with every layer of its blocks rounded to the nearest code."""
    model, grid = copy.deepcopy(model), Grid(bits)
    names = [layer.name for layer in plan_layers(model, group_size) if layer.quantize]

    def packed(_: str, linear: nn.Linear) -> PackedLinear:
        fitted = grid.fit(linear.weight, group_size)
        return PackedLinear(grid.pack(linear.weight, *fitted), linear.bias)

    swap_linears(model, names, packed)
    return model


def two_levels(weight: torch.Tensor) -> PackedWeight:
    """A float weight (out, in) with scales of two levels, fitted as simply as can be."""
    rows, columns = weight.shape
    groups = weight.detach().float().view(rows, columns // nested_block(columns), -1, NESTED_GROUP)
    low = groups.amin(-1).clamp_max(0)
    fitted = [(groups.amax(-1) - low) / 3, -low]
    blocks = [(part.amax(-1) / 15).half() for part in fitted]  # (out, blocks)
    steps = [
        (part / block.float().unsqueeze(-1)).round().clamp(1, 15)
        for part, block in zip(fitted, blocks, strict=True)
    ]
    scale, minimum = (
        block.float().unsqueeze(-1) * step for block, step in zip(blocks, steps, strict=True)
    )
    codes = ((groups + minimum.unsqueeze(-1)) / scale.unsqueeze(-1)).round().clamp(0, 3)
    both = (steps[0] + 16 * steps[1]).to(torch.uint8).view(rows, -1)
    packed = pack(codes.view(rows, columns), 2)
    return PackedWeight(packed, blocks[0], 2, 0.0, minimum=blocks[1], steps=both)


def signed(weight: torch.Tensor, bits: int) -> PackedWeight:
    """A float weight (out, in) with one scale a row and a code for zero: the largest weight is code 0, so that a scale
    may be negative.
    """
    weight = weight.detach().float()
    zero = 2 ** (bits - 1)
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    scale = (largest / -zero).half()
    codes = (weight / scale.float() + zero).round().clamp(0, 2**bits - 1)
    return PackedWeight(pack(codes, bits), scale, bits, float(zero))


Packer = Callable[[torch.Tensor], PackedWeight]


def repacked(model: Any, pack_layer: Packer, pack_ends: Packer) -> Any:
    """A copy of a float model with every layer of its blocks packed the one way, embedding and head the other."""
    model = copy.deepcopy(model)
    names = [layer.name for layer in plan_layers(model, 0) if layer.quantize]
    swap_linears(
        model, names, lambda _, linear: PackedLinear(pack_layer(linear.weight), linear.bias)
    )
    shared = model.config.tie_word_embeddings
    embedding = pack_ends(model.get_input_embeddings().weight)
    head = embedding if shared else pack_ends(model.get_output_embeddings().weight)
    model.set_input_embeddings(PackedEmbedding(embedding, torch.float32))
    model.set_output_embeddings(PackedLinear(head))
    return model


def signs(count: int, seed: int, spread: float = 0) -> torch.Tensor:
    """Random signs (count,) float16, times factors about one where there is a spread."""
    generator = torch.Generator().manual_seed(seed)
    factors = 1 + spread * torch.randn(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.5, -factors, factors).half()


def around_layer(kind: str, number: int, rows: int, columns: int) -> Transform | None:
    """A transform for the layer of this number. kind: "input", equal for equal widths; "both" sides, each layer its
    own; "lattice", both and the affine map; "some", both at every other layer; "none".
    """
    if kind == "none" or (kind == "some" and number % 2):
        return None
    block_in = hadamard_block(columns, 64)
    if kind == "input":
        return Transform(block_in, scale_in=signs(columns, columns))
    sides = signs(columns, number, 0.1), signs(rows, number + 1, 0.1)
    around = Transform(block_in, hadamard_block(rows, 32), *sides)
    if kind != "lattice":
        return around
    generator = torch.Generator().manual_seed(number)
    affine = torch.eye(4) + 0.2 * torch.randn(4, 4, generator=generator)
    return replace(around, affine=affine, shift=0.02 * torch.randn(4, generator=generator))


@torch.no_grad()
def surrounded(model: Any, bits: int, kind: str, group_size: int = 64) -> Any:
    """A copy of a float model, each layer of its blocks rounded where its transform puts it (`around_layer`)."""
    model, grid = copy.deepcopy(model), Grid(bits)
    names = [layer.name for layer in plan_layers(model, group_size) if layer.quantize]

    def packed(name: str, linear: nn.Linear) -> PackedLinear:
        rows, columns = linear.weight.shape
        around = around_layer(kind, names.index(name), rows, columns)
        weight = around.rotate(linear.weight) if around else linear.weight
        made = grid.pack(weight, *grid.fit(weight, group_size, "absmax"))
        return PackedLinear(replace(made, transform=around), linear.bias)

    swap_linears(model, names, packed)
    return model


def in_plain_torch(model: Any, span: int) -> Any:
    """The same packed model, computing in plain torch what the C kernels compute on spans of this size (0: exactly)."""
    model = copy.deepcopy(model)
    for name, layer in list(packed_layers(model)):
        replace_module(model, name, RoundedLinear(layer, span))
    return model
