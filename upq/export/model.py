"""An artifact opened for exporters: its layers, its other parameters and its files, by the names of transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from kernels.packing import PackedWeight
from kernels.reference import weight_of
from upq.artifact import Artifact, assembly
from upq.artifact.parts import parts_of


@dataclass(frozen=True)
class PackedModel:
    """A model to export.

    name: what its files are called, such as "SmolLM2-135M-Instruct". layers: packed linears, and the embedding (and an
    untied head) where they are packed, by the names of their modules. plain: every other parameter by its full name. A
    tied pair stands once, under the name of the embedding.
    """

    name: str
    artifact: Artifact
    layers: dict[str, PackedWeight]

    @property
    def precision(self) -> str:
        """INT4 or INT2."""
        return self.artifact.precision

    @property
    def config(self) -> dict[str, Any]:
        """The config.json of transformers."""
        return json.loads(self.artifact.files["config.json"])

    @property
    def plain(self) -> dict[str, torch.Tensor]:
        """The parameters that are not packed, biases of packed layers among them."""
        layers = self.layers.items()
        packed = {f"{name}.{part}" for name, weight in layers for part in parts_of(weight)}
        tensors = self.artifact.tensors.items()
        return {name: tensor for name, tensor in tensors if name not in packed}

    @property
    def linears(self) -> dict[str, PackedWeight]:
        """The packed layers of the decoder blocks, whose names have the number of a block."""
        return {
            name: weight
            for name, weight in self.layers.items()
            if any(part.isdigit() for part in name.split("."))
        }

    def weight(self, name: str) -> torch.Tensor:
        """The float32 weight (out, in) of a module that the artifact stands for, its rotation taken back."""
        if name in self.layers:
            return weight_of(self.layers[name])
        return self.artifact.tensors[f"{name}.weight"].float()


def opened(artifact: Artifact, name: str) -> PackedModel:
    """The parts of an artifact, vetted. Raises UserError: artifact_version, artifact_damaged."""
    return PackedModel(name, artifact, assembly.layers_of(artifact))
