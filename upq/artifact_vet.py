"""Refuses an artifact whose manifest, tensors and config do not fit together.

Kernels read memory by these shapes and dtypes without looking back, so nothing reaches them unchecked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels.packing import PackedWeight
from upq.artifact import Artifact
from upq.errors import UserError
from upq.structure import parameter_names


def damaged(message: str) -> UserError:
    """The error of an artifact that cannot be used."""
    return UserError(
        "artifact_damaged", message, "Delete the run and quantize again, or restore a backup."
    )


def vetted_layers(artifact: Artifact, model: nn.Module) -> dict[str, PackedWeight]:
    """The packed layers of an artifact by name. model: what its config describes, tied and without values.

    Raises UserError("artifact_damaged") unless the artifact holds exactly the parameters of the model, each in the
    shape that the config asks for, in a dtype of the format, and finite.
    """
    shared = {names[0]: names for names in parameter_names(model)}
    plain = {first: model.get_parameter(first) for first in shared}
    packed = {}
    for name, entry in _layers(artifact).items():
        weight = plain.pop(f"{name}.weight", None)
        if weight is None:
            raise damaged(f"The config describes no layer {name}.")
        users = [model.get_submodule(one.rpartition(".")[0]) for one in shared[f"{name}.weight"]]
        bits, groups = _grid(name, entry, users, tuple(weight.shape))
        packed[name] = _packed(artifact, name, tuple(weight.shape), bits, groups)
    for name, parameter in plain.items():
        tensor = _tensor(artifact, name, tuple(parameter.shape))
        _require(tensor.is_floating_point(), f"{name} is {tensor.dtype}; expected a float type")
    known = plain.keys() | {f"{name}.{part}" for name in packed for part in ("codes", "scale")}
    unknown = sorted(artifact.tensors.keys() - known)
    _require(not unknown, f"The config describes no {', '.join(unknown[:3])}")
    return packed


def _layers(artifact: Artifact) -> dict[str, Any]:
    layers = artifact.manifest.get("layers")
    if not isinstance(layers, dict):
        raise damaged("The manifest lists no layers.")
    return layers


def _grid(name: str, entry: Any, users: list[nn.Module], shape: tuple[int, ...]) -> tuple[int, int]:
    """(bits, groups) of a layer. entry: what the manifest says of it; users: the modules that hold its weight."""
    _require(isinstance(entry, dict), f"The manifest says nothing of {name}")
    bits, groups, zero = entry.get("bits"), entry.get("groups"), entry.get("zero")
    for user in users:
        _require(
            type(bits) is int and bits in _allowed_bits(user),
            f"{name} has codes of {bits!r} bits, which its {type(user).__name__} cannot have",
        )
    _require(min(shape) > 0, f"{name} is empty")
    _require(entry.get("shape") == list(shape), f"{name} is not of the config's shape {shape}")
    inputs = shape[1]
    _require(inputs * bits % 8 == 0, f"{inputs} codes of {bits} bits do not fill bytes in {name}")
    _require(zero == (2**bits - 1) / 2, f"{name} has the zero {zero!r}")
    _require(
        type(groups) is int and groups > 0 and inputs % groups == 0,
        f"{name} has {groups!r} groups for {inputs} inputs",
    )
    return bits, groups


def _allowed_bits(module: nn.Module) -> tuple[int, ...]:
    if type(module) is nn.Embedding:
        return (8,)
    return (2, 4, 8) if isinstance(module, nn.Linear) else ()


def _packed(
    artifact: Artifact, name: str, shape: tuple[int, ...], bits: int, groups: int
) -> PackedWeight:
    rows, inputs = shape
    codes = _tensor(artifact, f"{name}.codes", (rows, inputs * bits // 8))
    scale = _tensor(artifact, f"{name}.scale", (rows, groups))
    _require(codes.dtype == torch.uint8, f"{name}.codes is {codes.dtype}; expected torch.uint8")
    _require(scale.dtype == torch.float16, f"{name}.scale is {scale.dtype}; expected torch.float16")
    _require(bool((scale >= 0).all()), f"{name}.scale holds negative values")
    return PackedWeight(codes.contiguous(), scale.contiguous(), bits, (2**bits - 1) / 2)


def _tensor(artifact: Artifact, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The named tensor, which is there, finite and of this shape."""
    tensor = artifact.tensors.get(name)
    if tensor is None:
        raise damaged(f"The tensor {name} is missing.")
    _require(
        tuple(tensor.shape) == shape,
        f"{name} has the shape {tuple(tensor.shape)}; expected {shape}",
    )
    if tensor.is_floating_point():
        _require(bool(torch.isfinite(tensor).all()), f"{name} holds NaN or infinite values")
    return tensor


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise damaged(f"{message}.")
