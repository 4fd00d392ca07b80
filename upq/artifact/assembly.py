"""Making an artifact of a model and packed weights, and a model of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from kernels.packing import PackedWeight
from upq import machine
from upq.artifact.embeddings import packed_embeddings
from upq.artifact.format import Artifact
from upq.artifact.parts import OPTIONAL_PARTS, as_stored, parts_of
from upq.artifact.vet import damaged, require_known_version, vetted_layers
from upq.config import RunConfig
from upq.layers import INT8, Grid, PackedEmbedding, PackedLinear, replace_module
from upq.models import (
    BUILDING,
    LoadedModel,
    load_tokenizer,
    parameter_names,
    place,
    tokenizer_files,
    unstack_experts,
)


def build(
    precision: str,
    packed: dict[str, PackedWeight],
    loaded: LoadedModel,
    config: RunConfig,
    plain: Mapping[str, torch.Tensor] = MappingProxyType({}),
    embedding_grid: Grid = INT8,
) -> Artifact:
    """The artifact of `loaded` with the named linears replaced by packed weights, and, where the config asks for it,
    embedding and head rounded to few bits. embedding_grid: of those with 8. plain: other parameters that were trained,
    in float32; kept in float16.
    """
    packed = {name: as_stored(weight) for name, weight in packed.items()}
    embeddings = packed_embeddings(loaded.model, config.embedding_bits, embedding_grid)
    layers = packed | embeddings
    tensors = {
        f"{name}.{part}": tensor
        for name, weight in layers.items()
        for part, tensor in parts_of(weight).items()
    }
    replaced = {f"{name}.weight" for name in layers}
    for name, parameter in loaded.model.named_parameters():  # tied weights come once
        if name in plain:
            tensors[name] = plain[name].to(torch.float16).cpu().contiguous()
        elif name not in replaced:
            tensors[name] = _smallest(parameter.detach())
    files = tokenizer_files(loaded.tokenizer)
    files["config.json"] = _json(_config(loaded.model))
    files["generation_config.json"] = _json(loaded.model.generation_config.to_dict())
    manifest = _manifest(precision, packed, embeddings, loaded, config)
    return Artifact(precision, manifest, tensors, files)


def _config(model: Any) -> dict[str, Any]:
    """The model's config; a head that transformers left untied, as its weights differ, is said to be so."""
    values = model.config.to_dict()
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        values["tie_word_embeddings"] = False
    return values


def _smallest(tensor: torch.Tensor) -> torch.Tensor:
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
            return tensor.to(dtype).cpu().contiguous()
    return tensor.float().cpu().contiguous()


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode()


def _manifest(
    precision: str,
    packed: dict[str, PackedWeight],
    embeddings: dict[str, PackedWeight],
    loaded: LoadedModel,
    config: RunConfig,
) -> dict[str, Any]:
    weights = sum(weight.shape[0] * weight.shape[1] for weight in packed.values())
    return {
        "format_version": _version(packed, embeddings),
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
        "bits_per_weight": sum(weight.size_bytes for weight in packed.values()) * 8 / weights,
        "quantized_weights": weights,
        "layers": {name: _entry(weight) for name, weight in (packed | embeddings).items()},
        **machine.environment(),
    }


def _version(packed: dict[str, PackedWeight], embeddings: dict[str, PackedWeight]) -> int:
    """The oldest format that holds all of it."""
    weights = [*packed.values(), *embeddings.values()]
    if any(weight.steps is not None or weight.zero == 2 ** (weight.bits - 1) for weight in weights):
        return 4
    if any(weight.transform or weight.zeros is not None for weight in packed.values()):
        return 3
    return 2 if embeddings else 1


def _entry(packed: PackedWeight) -> dict[str, Any]:
    """What the manifest says of a packed layer."""
    transform, parts = packed.transform, sorted(parts_of(packed).keys() & OPTIONAL_PARTS)
    blocks = (
        {"hadamard_in": transform.block_in, "hadamard_out": transform.block_out}
        if transform
        else {}
    )
    return {
        "bits": packed.bits,
        "zero": packed.zero if packed.zeros is None and packed.steps is None else None,
        "shape": list(packed.shape),
        "groups": packed.scale.shape[1],
        **{name: size for name, size in blocks.items() if size > 1},
        **({"parts": parts} if parts else {}),
    }


def assemble(
    artifact: Artifact, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """(model, tokenizer) that compute in dtype; quantized weights stay packed.

    Raises UserError("artifact_version") for a format this program does not read, UserError("artifact_damaged") for
    an artifact whose parts do not fit together.
    """
    model, packed = _opened(artifact, dtype)
    model.generation_config = GenerationConfig.from_dict(
        _json_file(artifact, "generation_config.json")
    )
    _fill(model, artifact.tensors, packed, dtype)
    place(model, torch.device(device), dtype)
    return model.eval(), load_tokenizer(artifact.files)


def layers_of(artifact: Artifact) -> dict[str, PackedWeight]:
    """The packed layers of an artifact by name, vetted against its config. Raises what `assemble` does."""
    return _opened(artifact, torch.float32)[1]


def _opened(artifact: Artifact, dtype: torch.dtype) -> tuple[Any, dict[str, PackedWeight]]:
    """(the model that the config describes, without values; the packed layers)."""
    require_known_version(artifact.manifest.get("format_version"))
    model = empty_model(_json_file(artifact, "config.json"), dtype)
    return model, vetted_layers(artifact, model)


def _fill(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    packed: dict[str, PackedWeight],
    dtype: torch.dtype,
) -> None:
    """Give an empty model its values. Modules that share a weight share one parameter, or one pair of buffers."""
    users = {}
    for names in parameter_names(model):
        if names[0] in tensors:
            value = nn.Parameter(tensors[names[0]].to(dtype), requires_grad=False)
            for name in names:
                _set_parameter(model, name, value)
        else:
            sharing = [name.removesuffix(".weight") for name in names]
            users[sharing[0]] = sharing
    for layer, weight in packed.items():
        for name in users[layer]:
            replace_module(model, name, packed_form(model.get_submodule(name), weight, dtype))


def packed_form(module: Any, packed: PackedWeight, dtype: torch.dtype) -> nn.Module:
    """What takes the place of a linear layer or an embedding whose weight is packed, its bias kept."""
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(packed, dtype)
    return PackedLinear(packed, module.bias)


def _json_file(artifact: Artifact, name: str) -> dict[str, Any]:
    try:
        values = json.loads(artifact.files[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise damaged(f"The artifact has no readable {name}.") from error
    if not isinstance(values, dict):
        raise damaged(f"{name} is not an object.")
    return values


def empty_model(values: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model whose parameters hold no memory; its computed buffers (rotary frequencies) are real.

    Raises UserError("artifact_damaged") for a config that describes no model.
    """
    values = {
        name: value
        for name, value in values.items()
        if name not in ("quantization_config", "_name_or_path")
    }
    try:
        config = AutoConfig.for_model(**values)
        config.dtype = dtype
        with BUILDING, init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        unstack_experts(model)
        model.tie_weights()  # out here, because in there every assigned parameter becomes a new one
    except Exception as error:  # whatever the models of transformers raise
        raise damaged(f"No model can be built from config.json: {error}") from error
    return model


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, parameter)
