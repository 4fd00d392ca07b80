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
from kernels.packing import TENSORS, PackedWeight
from kernels.reference import dequantize
from kernels.transform import PARTS, Transform
from upq.layers.fake import fake_quantize
from upq.layers.grid import Grid


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
        """The whole latent as named tensors, for a checkpoint."""
        named = {"weight": self.weight, "scale": self.scale}
        if self.zero is not None:
            named["zero"] = self.zero
        if self.transform:
            named |= self.transform.tensors
            named["blocks"] = torch.tensor([self.transform.block_in, self.transform.block_out])
        return named

    @staticmethod
    def of_tensors(named: dict[str, torch.Tensor]) -> Latent:
        """The latent whose `tensors` these are."""
        transform = None
        if "blocks" in named:
            parts = {name: named.get(name) for name in PARTS}
            transform = Transform(*named["blocks"].tolist(), **parts)
        return Latent(named["weight"], named["scale"], named.get("zero"), transform)

    def to(self, device: torch.device | str) -> Latent:
        """The latent with its tensors on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        transform = self.transform and self.transform.to(device)
        return Latent(self.weight.to(device), self.scale.to(device), zero, transform)

    def pack(self, grid: Grid) -> PackedWeight:
        """Codes and scales as stored, on the latent's device; the scale is rounded to float16 before the weight is
        encoded.
        """
        return replace(grid.pack(self.weight, self.scale, self.zero), transform=self.transform)


class FakeQuantLinear(nn.Module):
    """y = x fake_quantize(weight)^T + bias; inputs and outputs are transformed where the latent has a transform.

    Parameters, all float32: weight (out, in), log_scale (out, groups), and where there are any, zero (out, groups) and
    the parts of the transform by their names (kernels.transform.PARTS). Computes in the dtype of x.
    """

    zero: nn.Parameter | None

    def __init__(self, latent: Latent, bias: torch.Tensor | None, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        #: Transforms inputs in the place of `transform`, where upq.training.shared_inputs says so.
        self.shared: Callable[[torch.Tensor], Any] | None = None
        self.blocks = _blocks(latent.transform)
        self.weight = nn.Parameter(latent.weight.detach().float().clone())
        self.log_scale = nn.Parameter(latent.scale.detach().float().log())
        self.register_parameter("zero", _parameter(latent.zero))
        for name in PARTS:
            self.register_parameter(name, _parameter(getattr(latent.transform, name, None)))
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )

    @property
    def transform(self) -> Transform | None:
        """What surrounds the weight, made of the parameters."""
        return _transform_of(self)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: (..., in) -> (..., out)."""
        weight = self.quantized(inputs.dtype)
        if (transform := self.transform) is None:
            return F.linear(inputs, weight, self.bias)
        values, added = (self.shared or transform.inputs)(inputs)
        outputs = transform.outputs(F.linear(values, weight), added)
        return outputs if self.bias is None else outputs + self.bias

    def quantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) that the inputs meet."""
        return fake_quantize(self.weight, self.log_scale, self.grid, dtype, self.zero)

    def state(self) -> Latent:
        """The present state on the layer's own device. The weight is the layer's own, the rest is copied."""
        transform = self.transform
        if transform is not None:
            parts = {name: part.detach().clone() for name, part in transform.tensors.items()}
            transform = replace(transform, **parts)
        zero = None if self.zero is None else self.zero.detach().clone()
        return Latent(self.weight.detach(), self.log_scale.detach().exp(), zero, transform)

    def latent(self) -> Latent:
        """A copy of the present state on the CPU."""
        state = self.state()
        return replace(state, weight=state.weight.to("cpu", copy=True)).to("cpu")

    def pack(self) -> PackedWeight:
        """Codes and scales as stored, made on the layer's device and copied to the CPU."""
        return self.state().pack(self.grid).to("cpu")


def _parameter(tensor: torch.Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.detach().float().clone())


def _blocks(transform: Transform | None) -> tuple[int, int] | None:
    """The sizes of a transform's Hadamard blocks, of inputs and of outputs."""
    return None if transform is None else (transform.block_in, transform.block_out)


def _transform_of(layer: FakeQuantLinear | _Packed) -> Transform | None:
    """The transform whose parts a layer has as parameters or buffers."""
    if layer.blocks is None:
        return None
    return Transform(*layer.blocks, **{name: getattr(layer, name) for name in PARTS})


class _Packed(nn.Module):
    """A module over one packed weight.

    Buffers: the tensors of the packed weight (kernels.packing.TENSORS) and the parts of its transform by their names,
    or None where it has none.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.bits, self.zero, self.blocks = packed.bits, packed.zero, _blocks(packed.transform)
        for name in TENSORS:
            self.register_buffer(name, getattr(packed, name))
        for name in PARTS:
            self.register_buffer(name, getattr(packed.transform, name, None))
        self._known: PackedWeight | None = None

    @property
    def packed(self) -> PackedWeight:
        """The buffers as the kernels take them; put together once, and again when a buffer is replaced."""
        if self._known is None:
            parts = {name: getattr(self, name) for name in TENSORS}
            grid = {"bits": self.bits, "zero": self.zero, "transform": _transform_of(self)}
            self._known = PackedWeight(**parts, **grid)
        return self._known

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self._buffers:
            self._known = None

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self._known = None  # torch is about to replace buffers behind __setattr__
        return super()._apply(*arguments, **options)


class PackedLinear(_Packed):
    """y = x W^T + bias over packed weights."""

    def __init__(self, packed: PackedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__(packed)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

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


class PackedEmbedding(_Packed):
    """Rows of a packed weight (vocabulary, hidden), which has no transform, in `dtype`."""

    def __init__(self, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__(packed)
        self.settle(packed.codes.device, dtype)

    def settle(self, device: torch.device, dtype: torch.dtype) -> None:
        """Give rows in dtype from now on. An empty `weight` says device and dtype, to families that look there and to a
        model that has no other parameter, as its norms have no weights.
        """
        empty = torch.empty(0, dtype=dtype, device=device)
        self.weight = nn.Parameter(empty, requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the rows."""
        return self.weight.dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (...) integers -> (..., hidden). IndexError for an id outside of the vocabulary."""
        wanted, tensors = ids.flatten(), self.packed.tensors.items()
        parts = {name: tensor.index_select(0, wanted) for name, tensor in tensors}
        rows = dequantize(replace(self.packed, **parts), self.dtype)
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
