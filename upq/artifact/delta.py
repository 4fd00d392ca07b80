"""An artifact as what its base model does not say already: differences to rounding, scales, signs and trained norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy
import torch

from kernels.packing import PackedWeight, pack, unpack
from kernels.reference import group_scales
from kernels.transform import Transform, part_shapes
from upq.artifact.assembly import build
from upq.artifact.format import Artifact
from upq.artifact.vet import vetted_layers
from upq.config import RunConfig
from upq.layers import INT8, Grid
from upq.models import LoadedModel

SIGNS = ("scale_in", "scale_out")
#: Tensors of a packed layer that are kept as they are.
STORED_AS_THEY_ARE = ("scale", "minimum", "steps")


def differences(artifact: Artifact, loaded: LoadedModel) -> dict[str, numpy.ndarray]:
    """What `restored` needs beside the manifest. loaded: the model that the artifact was made of.

    codes are differences modulo 2**bits, packed as codes are; signs are bits, 1 for +1. Raises ValueError for a layer
    with zeros, a lattice, factors other than signs, or a Hadamard matrix that is not exact in binary.
    """
    packed = vetted_layers(artifact, loaded.model)
    layers = {name: weight for name, weight in packed.items() if weight.bits < 8}
    untrained = _built(artifact.manifest, layers, loaded).tensors
    arrays = {
        name: tensor.numpy()
        for name, tensor in artifact.tensors.items()
        if not torch.equal(tensor, untrained[name])
    }
    for name, weight in layers.items():
        _require_exact(name, weight)
        codes = unpack(weight.codes, weight.bits) - _rounded(loaded, name, weight)
        arrays[f"{name}.codes"] = pack(codes & (2**weight.bits - 1), weight.bits).numpy()
        for part in STORED_AS_THEY_ARE:
            if part in weight.tensors:
                arrays[f"{name}.{part}"] = weight.tensors[part].numpy()
        for part, signs in (weight.transform.tensors if weight.transform else {}).items():
            arrays[f"{name}.{part}"] = numpy.packbits((signs > 0).numpy())
    return arrays


def restored(
    manifest: dict[str, Any], arrays: Mapping[str, numpy.ndarray], loaded: LoadedModel
) -> Artifact:
    """The artifact that `differences` took apart. loaded: the same model as there."""
    layers = {
        name: _layer(name, entry, arrays, loaded)
        for name, entry in manifest["layers"].items()
        if entry["bits"] < 8
    }
    trained = {
        name: torch.from_numpy(arrays[name])
        for name, _ in loaded.model.named_parameters()
        if name in arrays
    }
    artifact = _built(manifest, layers, loaded, trained)
    return replace(artifact, manifest=manifest)


def _built(
    manifest: dict[str, Any],
    layers: dict[str, PackedWeight],
    loaded: LoadedModel,
    trained: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Artifact:
    """The artifact of these layers, its embedding and head on the grid that the manifest names."""
    config = RunConfig.from_values(manifest["config"])
    zeros = {entry["zero"] for entry in manifest["layers"].values() if entry["bits"] == INT8.bits}
    grid = INT8 if INT8.zero in zeros else Grid(INT8.bits)
    return build(manifest["precision"], layers, loaded, config, trained, grid)


def _rounded(loaded: LoadedModel, name: str, packed: PackedWeight) -> torch.Tensor:
    """Codes (out, in) uint8 of the FP16 weight, rotated, at the scales of `packed`."""
    weight = loaded.model.get_parameter(f"{name}.weight").detach().double()
    rotated = packed.transform.rotate(weight) if packed.transform else weight
    grid = Grid(packed.bits)
    if packed.zero == grid.zero and packed.steps is None:
        return grid.encode(rotated, packed.scale)
    return grid.encode(rotated, *group_scales(packed))


def _layer(
    name: str, entry: dict[str, Any], arrays: Mapping[str, numpy.ndarray], loaded: LoadedModel
) -> PackedWeight:
    bits, (rows, columns) = entry["bits"], entry["shape"]
    signs = {
        part: _signs(arrays[f"{name}.{part}"], *part_shapes(rows, columns)[part])
        for part in entry.get("parts", ())
        if part in SIGNS
    }
    blocks = entry.get("hadamard_in", 1), entry.get("hadamard_out", 1)
    transform = Transform(*blocks, **signs) if signs or blocks != (1, 1) else None
    parts = {
        part: torch.from_numpy(arrays[f"{name}.{part}"])
        for part in STORED_AS_THEY_ARE
        if f"{name}.{part}" in arrays
    }
    difference, zero = torch.from_numpy(arrays[f"{name}.codes"]), entry["zero"] or 0.0
    packed = PackedWeight(difference, bits=bits, zero=zero, transform=transform, **parts)
    codes = unpack(difference, bits) + _rounded(loaded, name, packed)
    return replace(packed, codes=pack(codes & (2**bits - 1), bits))


def _signs(packed: numpy.ndarray, count: int) -> torch.Tensor:
    return torch.from_numpy(numpy.unpackbits(packed, count=count)).half() * 2 - 1


def _require_exact(name: str, packed: PackedWeight) -> None:
    """Raise ValueError unless every machine computes the same codes for this layer."""
    transform = packed.transform or Transform()
    blocks = {transform.block_in, transform.block_out}
    signs = all(bool((part.abs() == 1).all()) for part in transform.tensors.values())
    if packed.zeros is not None or transform.tensors.keys() - set(SIGNS) or not signs:
        raise ValueError(f"{name} has zeros, a lattice or tuned factors, which are not kept here")
    if any(block.bit_length() % 2 == 0 for block in blocks):
        raise ValueError(f"{name} has Hadamard blocks of {blocks}; expected 1, 4, 16, 64, ...")
