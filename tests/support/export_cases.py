"""Artifacts of small models on every grid, and what tests of exports ask of folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kernels.transform import Transform
from upq.artifact import Artifact, assembly
from upq.config import RunConfig
from upq.export import PackedModel, opened
from upq.layers import INT8, Grid, grid_of
from upq.models import LoadedModel, plan_layers

WEIGHTS = "model.safetensors"
IDS = torch.randint(6, 262, (2, 20), generator=torch.Generator().manual_seed(0))
GROUP = 32


def artifact_of(
    loaded: LoadedModel,
    kind: str,
    bits: int,
    group: int = GROUP,
    embedding: Grid | None = INT8,
) -> Artifact:
    """The model with its linears on a grid; embedding: the grid of embedding and head, None for 16 bits."""
    grid, packed = grid_of(kind, bits), {}
    size = 16 if kind == "q2_k" else group
    for layer in plan_layers(loaded.model, size):
        if not layer.quantize:
            continue
        weight = loaded.model.get_parameter(f"{layer.name}.weight").detach()
        packed[layer.name] = grid.pack(weight, *grid.fit(weight, size))
    config = RunConfig(embedding_bits=16 if embedding is None else 8)
    return assembly.build(f"INT{bits}", packed, loaded, config, embedding_grid=embedding or INT8)


def rotated(artifact: Artifact, loaded: LoadedModel) -> Artifact:
    """The same codes behind signs and Hadamard matrices on both sides."""
    layers = {}
    for name, weight in assembly.layers_of(artifact).items():
        if weight.bits < 8:
            rows, columns = weight.shape
            signs = [torch.ones(size).half() for size in (columns, rows)]
            for one in signs:
                one[::3] = -1
            layers[name] = replace(weight, transform=Transform(16, 8, *signs))
    config = RunConfig(embedding_bits=8)
    return assembly.build(artifact.precision, layers, loaded, config)


def model_of(loaded: LoadedModel, kind: str, bits: int, **options: Any) -> PackedModel:
    """`artifact_of`, opened."""
    return opened(artifact_of(loaded, kind, bits, **options), "tiny")


def edit(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = WEIGHTS
) -> None:
    """Change the tensors of a folder in place. name: of their file."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    return json.loads((folder / "config.json").read_text("utf-8"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """(2, 20, vocabulary) of a fixed text."""
    return model(input_ids=IDS.to(model.device), use_cache=False).logits
