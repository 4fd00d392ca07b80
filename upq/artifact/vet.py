"""Refuses an artifact whose manifest, tensors and config do not fit together.

Kernels read memory by these shapes and dtypes without looking back, so nothing reaches them unchecked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels.packing import NESTED_GROUP, PackedWeight, nested_block
from kernels.transform import LATTICE, Transform, part_shapes
from upq.artifact.format import FORMAT_VERSIONS, Artifact
from upq.artifact.parts import OPTIONAL_PARTS, parts_of
from upq.errors import UserError
from upq.models import parameter_names

#: The largest Hadamard block that the format knows.
LARGEST_HADAMARD = 4096
#: Parts of a layer with two levels of scales, which has both, and the bits of its codes.
STEPS, STEP_BITS = {"minimum", "steps"}, 2


def damaged(message: str) -> UserError:
    """The error of an artifact that cannot be used."""
    return UserError(
        "artifact_damaged", message, "Delete the run and quantize again, or restore a backup."
    )


def require_known_version(version: object) -> None:
    """Raise UserError("artifact_version") for a format that this program does not read."""
    if version not in FORMAT_VERSIONS:
        raise UserError(
            "artifact_version",
            f"The artifact has format {version}; this program reads {FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}.",
            "Use the version of UPQ Studio that wrote it.",
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
        users = [model.get_submodule(path.rpartition(".")[0]) for path in shared[f"{name}.weight"]]
        shape = tuple(weight.shape)
        bits, groups = _grid(name, entry, users, shape)
        packed[name] = _packed(artifact, name, entry, shape, bits, groups)
        weight = packed[name]
        is_plain = weight.zeros is None and weight.steps is None and weight.transform is None
        _require(
            is_plain or not any(isinstance(user, nn.Embedding) for user in users),
            f"{name} has zeros, steps or a transform, which an embedding cannot have",
        )
    for name, parameter in plain.items():
        tensor = _tensor(artifact, name, tuple(parameter.shape))
        _require(tensor.is_floating_point(), f"{name} is {tensor.dtype}; expected a float type")
    known = plain.keys() | {f"{name}.{part}" for name in packed for part in parts_of(packed[name])}
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
    own = {"zero", *STEPS} & set(_part_names(name, entry))
    _require(own in (set(), {"zero"}, STEPS), f"{name} has the parts {sorted(own)} and no others")
    allowed = (None,) if own else ((2**bits - 1) / 2, 2 ** (bits - 1))
    _require(zero in allowed and type(zero) in (float, type(None)), f"{name} has the zero {zero!r}")
    if own == STEPS:
        _require(bits == STEP_BITS, f"{name} has steps and codes of {bits} bits")
        _require(inputs % NESTED_GROUP == 0, f"{name} has steps for {inputs} inputs")
        blocks = inputs // nested_block(inputs)
        _require(groups == blocks, f"{name} has {groups!r} blocks; expected {blocks}")
    _require(
        type(groups) is int and groups > 0 and inputs % groups == 0,
        f"{name} has {groups!r} groups for {inputs} inputs",
    )
    return bits, groups


def _allowed_bits(module: nn.Module) -> tuple[int, ...]:
    if type(module) is nn.Embedding:
        return (4, 8)
    return (2, 4, 8) if isinstance(module, nn.Linear) else ()


def _packed(
    artifact: Artifact,
    name: str,
    entry: dict[str, Any],
    shape: tuple[int, ...],
    bits: int,
    groups: int,
) -> PackedWeight:
    rows, inputs = shape
    codes = _tensor(artifact, f"{name}.codes", (rows, inputs * bits // 8))
    scale = _tensor(artifact, f"{name}.scale", (rows, groups))
    _require(codes.dtype == torch.uint8, f"{name}.codes is {codes.dtype}; expected torch.uint8")
    _require(scale.dtype == torch.float16, f"{name}.scale is {scale.dtype}; expected torch.float16")
    is_signed = entry["zero"] == 2 ** (bits - 1)
    _require(is_signed or bool((scale >= 0).all()), f"{name}.scale holds negative values")
    parts = _optional_parts(artifact, name, entry, shape, groups)
    zeros, minimum, steps = (parts.pop(part, None) for part in ("zero", "minimum", "steps"))
    _require(
        zeros is None or int(zeros.max()) < 2**bits, f"{name}.zero holds more than {bits} bits"
    )
    block_in = _hadamard(name, entry, "hadamard_in", inputs)
    block_out = _hadamard(name, entry, "hadamard_out", rows)
    transformed = bool(parts) or (block_in, block_out) != (1, 1)
    transform = Transform(block_in, block_out, **parts) if transformed else None
    zero = (
        entry["zero"] if entry["zero"] is not None else 0.0 if zeros is None else (2**bits - 1) / 2
    )
    parts = {"zeros": zeros, "transform": transform, "minimum": minimum, "steps": steps}
    return PackedWeight(codes.contiguous(), scale.contiguous(), bits, zero, **parts)


def _part_names(name: str, entry: dict[str, Any]) -> list[str]:
    """The optional tensors that the manifest gives a layer."""
    parts = entry.get("parts", [])
    _require(
        isinstance(parts, list)
        and all(isinstance(part, str) and part in OPTIONAL_PARTS for part in parts),
        f"{name} has the parts {parts!r}",
    )
    return parts


def _optional_parts(
    artifact: Artifact, name: str, entry: dict[str, Any], shape: tuple[int, ...], groups: int
) -> dict[str, torch.Tensor]:
    rows, inputs = shape
    shapes = {"zero": (rows, groups), "minimum": (rows, groups)}
    shapes |= {"steps": (rows, inputs // NESTED_GROUP), **part_shapes(rows, inputs)}
    found = {}
    for part in _part_names(name, entry):
        tensor, wanted = _tensor(artifact, f"{name}.{part}", shapes[part]), OPTIONAL_PARTS[part]
        _require(tensor.dtype == wanted, f"{name}.{part} is {tensor.dtype}; expected {wanted}")
        found[part] = tensor.contiguous()
    _require(
        not found.keys() & {"affine", "shift"} or inputs % LATTICE == 0,
        f"{name} has a lattice of {LATTICE} inputs, which does not divide {inputs}",
    )
    return found


def _hadamard(name: str, entry: dict[str, Any], side: str, width: int) -> int:
    """The size of the Hadamard blocks of the inputs or the outputs, 1 for none."""
    size = entry.get(side, 1)
    _require(
        type(size) is int and 1 <= size <= LARGEST_HADAMARD and size.bit_count() == 1,
        f"{name} has {side} {size!r}; expected a power of two up to {LARGEST_HADAMARD}",
    )
    _require(width % size == 0, f"{name} has {side} {size}, which does not divide {width}")
    return size


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
