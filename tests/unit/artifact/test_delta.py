"""Artifacts taken apart into what their base model does not say, and put together again, on every grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.packing import PackedWeight
from kernels.transform import Transform
from upq.artifact import Artifact, assembly
from upq.artifact.delta import differences, restored
from upq.config import RunConfig
from upq.layers import Grid, grid_of
from upq.models import LoadedModel, plan_layers

GROUPS = {"odd": 32, "signed": 32, "q2_k": 16, "integer_zero": 32}


def artifact_of(tiny: LoadedModel, kind: str, bits: int, embedding_grid: Grid) -> Artifact:
    """The tiny model, in weights of 16 bits, with layers on a grid, every second one behind signs and a Hadamard."""
    grid, packed = grid_of(kind, bits), {}
    for number, layer in enumerate(plan_layers(tiny.model, GROUPS[kind])):
        parameter = tiny.model.get_parameter(f"{layer.name}.weight")
        parameter.data = parameter.data.half().float()
        signs = torch.ones(layer.shape[1])
        signs[::3] = -1
        transform = Transform(16, scale_in=signs) if number % 2 else None
        weight = transform.rotate(parameter.detach()) if transform else parameter.detach()
        fitted: PackedWeight = grid.pack(weight, *grid.fit(weight, GROUPS[kind]))
        packed[layer.name] = replace(fitted, transform=transform)
    config = RunConfig(embedding_bits=8)
    return assembly.build(f"INT{bits}", packed, tiny, config, embedding_grid=embedding_grid)


@pytest.mark.parametrize(
    ("kind", "bits"), [("odd", 2), ("odd", 4), ("signed", 2), ("signed", 4), ("q2_k", 2)]
)
@pytest.mark.parametrize("embedding_grid", [grid_of("odd", 8), assembly.INT8], ids=str)
def test_every_tensor_comes_back(
    tiny: LoadedModel, kind: str, bits: int, embedding_grid: Grid
) -> None:
    artifact = artifact_of(tiny, kind, bits, embedding_grid)
    arrays = differences(artifact, tiny)
    assert not any(name.startswith("model.embed_tokens") for name in arrays)
    again = restored(artifact.manifest, arrays, tiny)
    assert again.tensors.keys() == artifact.tensors.keys()
    for name, tensor in artifact.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        assert torch.equal(again.tensors[name], tensor), name
    assembly.assemble(again)


def test_codes_of_rounded_weights_differ_by_nothing(tiny: LoadedModel) -> None:
    artifact = artifact_of(tiny, "signed", 4, assembly.INT8)
    arrays = differences(artifact, tiny)
    moved = [array for name, array in arrays.items() if name.endswith(".codes") and array.any()]
    assert len(moved) <= len(artifact.manifest["layers"]) // 4, "the rotated ones round in float64"


def test_whole_zeros_are_not_kept(tiny: LoadedModel) -> None:
    with pytest.raises(ValueError, match="has zeros, a lattice or tuned factors"):
        differences(artifact_of(tiny, "integer_zero", 2, assembly.INT8), tiny)
