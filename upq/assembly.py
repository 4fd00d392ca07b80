"""Making an artifact of a model and packed weights, and a model of an artifact."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

import upq
from kernels.packing import PackedWeight
from upq.artifact import FORMAT_VERSION, Artifact
from upq.config import RunConfig
from upq.conversation import load_tokenizer, tokenizer_files
from upq.errors import UserError
from upq.layers import PackedLinear, replace_module
from upq.models import LoadedModel


def build(
    precision: str, packed: dict[str, PackedWeight], loaded: LoadedModel, config: RunConfig
) -> Artifact:
    """The artifact of `loaded` with the named linears replaced by packed weights."""
    tensors = {f"{name}.codes": one.codes for name, one in packed.items()}
    tensors |= {f"{name}.scale": one.scale for name, one in packed.items()}
    replaced = {f"{name}.weight" for name in packed}
    for name, parameter in loaded.model.named_parameters():  # tied weights come once
        if name not in replaced:
            tensors[name] = _smallest(parameter.detach())
    files = tokenizer_files(loaded.tokenizer)
    files["config.json"] = _json(loaded.model.config.to_dict())
    files["generation_config.json"] = _json(loaded.model.generation_config.to_dict())
    return Artifact(precision, _manifest(precision, packed, loaded, config), tensors, files)


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return tensor.to(dtype).cpu().contiguous()
    return tensor.float().cpu().contiguous()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode()


def _manifest(
    precision: str, packed: dict[str, PackedWeight], loaded: LoadedModel, config: RunConfig
) -> dict[str, Any]:
    weights = sum(one.shape[0] * one.shape[1] for one in packed.values())
    return {
        "format_version": FORMAT_VERSION,
        "precision": precision,
        "method": config.method,
        "config": json.loads(config.to_json()),
        "seed": config.seed,
        "base_model": {
            "source": loaded.info.source,
            "name": loaded.info.name,
            "revision": loaded.info.revision,
            "files": loaded.info.files,
            "reference_note": loaded.info.reference_note,
            "parameters": loaded.info.parameters,
        },
        "bits_per_weight": sum(one.size_bytes for one in packed.values()) * 8 / weights,
        "quantized_weights": weights,
        "layers": {
            name: {
                "bits": one.bits,
                "zero": one.zero,
                "shape": list(one.shape),
                "groups": one.scale.shape[1],
            }
            for name, one in packed.items()
        },
        "versions": {
            "upq": upq.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def packed_weights(artifact: Artifact) -> dict[str, PackedWeight]:
    """The packed linears of an artifact by layer name."""
    return {
        name: PackedWeight(
            artifact.tensors[f"{name}.codes"],
            artifact.tensors[f"{name}.scale"],
            layer["bits"],
            layer["zero"],
        )
        for name, layer in artifact.manifest["layers"].items()
    }


def assemble(
    artifact: Artifact, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """(model, tokenizer) that compute in dtype; quantized weights stay packed.

    Raises UserError("artifact_version") for a format this program does not read.
    """
    if artifact.manifest["format_version"] != FORMAT_VERSION:
        raise UserError(
            "artifact_version",
            f"The artifact has format {artifact.manifest['format_version']}; this program reads {FORMAT_VERSION}.",
            "Use the version of UPQ Studio that wrote it.",
        )
    model = _empty_model(json.loads(artifact.files["config.json"]), dtype)
    generation = json.loads(artifact.files["generation_config.json"])
    model.generation_config = GenerationConfig.from_dict(generation)
    packed = packed_weights(artifact)
    for name, one in packed.items():
        bias = artifact.tensors.get(f"{name}.bias")
        replace_module(model, name, PackedLinear(one, bias))
    parts = {f"{name}.{part}" for name in packed for part in ("codes", "scale", "bias")}
    for name, tensor in artifact.tensors.items():
        if name not in parts:
            replace_parameter(model, name, tensor.to(dtype))
    model.tie_weights()
    return model.to(device).eval(), load_tokenizer(artifact.files)


def _empty_model(values: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model whose parameters hold no memory; its computed buffers (rotary frequencies) are real."""
    values = {
        name: value
        for name, value in values.items()
        if name not in ("quantization_config", "_name_or_path")
    }
    config = AutoConfig.for_model(**values)
    config.dtype = dtype
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def replace_parameter(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set the parameter at the dotted `name` to a frozen tensor."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
