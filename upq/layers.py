"""A linear layer in its two quantized forms, an embedding in its packed one, and swapping them into a model.

`FakeQuantLinear` is what stages train: full-precision weight, fake-quantized on the way into the product.
`PackedLinear` is what chats: codes stay packed in memory and `kernels.matmul` reads them. `PackedEmbedding` unpacks
the rows that it is asked for. An embedding and a head with one weight hold the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

import kernels
from kernels.packing import PackedWeight
from kernels.reference import dequantize
from kernels.transform import Transform
from upq.quantizers import Grid, fake_quantize


class FakeQuantLinear(nn.Module):
    """y = x fake_quantize(weight)^T + bias.

    weight: (out, in) float32 parameter; log_scale: (out, groups) float32 parameter; computes in the dtype of x.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, scale: torch.Tensor, grid: Grid
    ) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.log_scale = nn.Parameter(scale.detach().float().log())
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        weight = fake_quantize(self.weight, self.log_scale, self.grid, inputs.dtype)
        return F.linear(inputs, weight, self.bias)

    @torch.no_grad()
    def pack(self) -> PackedWeight:
        """Codes and scales as stored; the scale is rounded to float16 before the weight is encoded."""
        return self.grid.pack(self.weight, self.log_scale.exp())


class PackedLinear(nn.Module):
    """y = x W^T + bias over packed weights.

    Buffers: codes (out, bytes) uint8, scale (out, groups) float16; zeros (out, groups) uint8 and the tensors of a
    transform, or None where the packed weight has none.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor | None
    scale_in: torch.Tensor | None
    scale_out: torch.Tensor | None
    affine: torch.Tensor | None
    shift: torch.Tensor | None

    def __init__(self, packed: PackedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.bits, self.zero, around = packed.bits, packed.zero, packed.transform
        self.blocks = (around.block_in, around.block_out) if around else None
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("zeros", packed.zeros)
        for name in ("scale_in", "scale_out", "affine", "shift"):
            self.register_buffer(name, getattr(around, name, None))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def packed(self) -> PackedWeight:
        """The buffers as the kernels take them."""
        around = None
        if self.blocks:
            around = Transform(*self.blocks, self.scale_in, self.scale_out, self.affine, self.shift)
        return PackedWeight(self.codes, self.scale, self.bits, self.zero, self.zeros, around)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        outputs = kernels.matmul(inputs, self.packed)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        out_features, in_features = self.packed.shape
        return (
            f"in={in_features}, out={out_features}, bits={self.bits}, groups={self.scale.shape[1]}"
        )


class PackedEmbedding(nn.Module):
    """Rows of a packed weight (vocabulary, hidden) in `dtype`. Buffers as those of PackedLinear."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.bits, self.zero, self.dtype = packed.bits, packed.zero, dtype
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scale", packed.scale)

    @property
    def packed(self) -> PackedWeight:
        """The buffers as the kernels take them."""
        return PackedWeight(self.codes, self.scale, self.bits, self.zero)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (...) integers -> (..., hidden). IndexError for an id outside of the vocabulary."""
        wanted = ids.flatten()
        codes, scale = self.codes.index_select(0, wanted), self.scale.index_select(0, wanted)
        rows = dequantize(PackedWeight(codes, scale, self.bits, self.zero), self.dtype)
        return rows.view(*ids.shape, rows.shape[1])

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        rows, columns = self.packed.shape
        return f"rows={rows}, columns={columns}, bits={self.bits}, groups={self.scale.shape[1]}"


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name` below root."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def swap_linears(
    root: nn.Module, names: list[str], make: Callable[[str, nn.Linear], nn.Module]
) -> None:
    """Replace each named linear below root by make(name, linear)."""
    for name in names:
        replace_module(root, name, make(name, cast(nn.Linear, root.get_submodule(name))))


def fake_quant_layers(root: nn.Module) -> Iterator[tuple[str, FakeQuantLinear]]:
    """(name, layer) of every training-form layer below root, in module order."""
    for name, module in root.named_modules():
        if isinstance(module, FakeQuantLinear):
            yield name, module


def packed_layers(root: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """(name, layer) of every packed layer below root, in module order."""
    for name, module in root.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model in place, its parameters to `dtype` as well. What modules share stays shared, buffers too, which
    Module.to would copy once for each module.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype)
    moved = {id(buffer): buffer.to(device) for buffer in model.buffers()}
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, moved[id(buffer)])
        if isinstance(module, PackedEmbedding):
            module.dtype = dtype


def memory_bytes(model: nn.Module) -> int:
    """Bytes that a model's parameters and buffers really take in memory, shared storage counted once."""
    storages = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
