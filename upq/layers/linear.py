"""A linear layer in its two quantized forms, an embedding in its packed one, and swapping them into a model.

`FakeQuantLinear` is what stages train: full-precision weight, fake-quantized on the way into the product.
`PackedLinear` is what chats: codes stay packed in memory and `kernels.matmul` reads them. `PackedEmbedding` unpacks
the rows that it is asked for. An embedding and a head with one weight hold the same buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

import kernels
from kernels.packing import PackedWeight
from kernels.reference import dequantize
from kernels.transform import Transform
from upq.layers.fake import fake_quantize
from upq.layers.grid import Grid

#: The vectors and matrices of a Transform.
AROUND = ("scale_in", "scale_out", "affine", "shift")


@dataclass(frozen=True)
class Latent:
    """A layer between two stages: not yet rounded, in the space that its transform leads to.

    weight: (out, in) float32; scale: (out, groups) float32; zero: (out, groups) float32 where groups have their own.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    transform: Transform | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it as named tensors, for a checkpoint."""
        named = {"weight": self.weight, "scale": self.scale}
        if self.zero is not None:
            named["zero"] = self.zero
        if self.transform:
            named |= self.transform.tensors
            named["blocks"] = torch.tensor([self.transform.block_in, self.transform.block_out])
        return named

    @staticmethod
    def of_tensors(named: dict[str, torch.Tensor]) -> Latent:
        """What `tensors` gave."""
        around = None
        if "blocks" in named:
            vectors = {name: named.get(name) for name in AROUND}
            around = Transform(*named["blocks"].tolist(), **vectors)
        return Latent(named["weight"], named["scale"], named.get("zero"), around)

    def pack(self, grid: Grid) -> PackedWeight:
        """Codes and scales as stored; the scale is rounded to float16 before the weight is encoded."""
        return replace(grid.pack(self.weight, self.scale, self.zero), transform=self.transform)


class FakeQuantLinear(nn.Module):
    """y = x fake_quantize(weight)^T + bias, between the transforms of activations where the latent has them.

    Parameters, all float32: weight (out, in), log_scale (out, groups), and where there are any, zero (out, groups),
    scale_in (in,), scale_out (out,), affine (4, 4), shift (4,). Computes in the dtype of x.
    """

    zero: nn.Parameter | None
    scale_in: nn.Parameter | None
    scale_out: nn.Parameter | None
    affine: nn.Parameter | None
    shift: nn.Parameter | None

    def __init__(self, latent: Latent, bias: torch.Tensor | None, grid: Grid) -> None:
        super().__init__()
        self.grid, around = grid, latent.transform
        #: Transforms inputs in the place of `transform`, where upq.training.shared_inputs says so.
        self.shared: Callable[[torch.Tensor], Any] | None = None
        self.blocks = (around.block_in, around.block_out) if around else None
        self.weight = nn.Parameter(latent.weight.detach().float().clone())
        self.log_scale = nn.Parameter(latent.scale.detach().float().log())
        self.register_parameter("zero", _parameter(latent.zero))
        for name in AROUND:
            self.register_parameter(name, _parameter(getattr(around, name, None)))
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )

    @property
    def transform(self) -> Transform | None:
        """What surrounds the weight, made of the parameters."""
        if self.blocks is None:
            return None
        return Transform(*self.blocks, self.scale_in, self.scale_out, self.affine, self.shift)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        weight = self.quantized(inputs.dtype)
        if (around := self.transform) is None:
            return F.linear(inputs, weight, self.bias)
        values, added = (self.shared or around.inputs)(inputs)
        outputs = around.outputs(F.linear(values, weight), added)
        return outputs if self.bias is None else outputs + self.bias

    def quantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) that the inputs meet."""
        return fake_quantize(self.weight, self.log_scale, self.grid, dtype, self.zero)

    def latent(self) -> Latent:
        """A copy of the present state on the CPU."""
        kept = {name: _copied(getattr(self, name)) for name in ("weight", "zero", *AROUND)}
        around = None
        if self.blocks:
            around = Transform(*self.blocks, **{name: kept[name] for name in AROUND})
        scale = self.log_scale.detach().exp().cpu()
        return Latent(self.weight.detach().to("cpu", copy=True), scale, kept["zero"], around)

    def pack(self) -> PackedWeight:
        """Codes and scales as stored."""
        return self.latent().pack(self.grid)


def _parameter(tensor: torch.Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach().float().clone())


def _copied(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().to("cpu", copy=True)


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
        for name in AROUND:
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


@torch.no_grad()
def set_parameters(root: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Write values over the named parameters of root, in their own dtype."""
    for name, value in values.items():
        root.get_parameter(name).copy_(value)


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


def memory_bytes(model: nn.Module) -> int:
    """Bytes that a model's parameters and buffers really take in memory, shared storage counted once."""
    storages = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
