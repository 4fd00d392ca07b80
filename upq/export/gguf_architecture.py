"""Which architecture of llama.cpp a model is, and the numbers that llama.cpp needs of it."""

from __future__ import annotations

from typing import Any

import gguf
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from upq.export.formats import cannot_export
from upq.export.model import PackedModel
from upq.export.origin import origin

#: transformers' model_type -> the architecture: the families that the C engine decodes as well.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
#: Rotary positions that llama.cpp computes as transformers does; those of "llama3" are a tensor of the file.
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
LLAMA3 = "llama3"
#: Settings of "yarn" in which transformers departs from llama.cpp.
FOREIGN_YARN = {"attention_factor", "mscale", "mscale_all_dim", "truncate"}
HUB = "https://huggingface.co"
QUANTIZED_BY = "UPQ Studio"


def config_of(model: PackedModel) -> Any:
    """The config of transformers, its rotary positions in one spelling. Raises UserError("cannot_export")."""
    values = model.config
    kind = values["model_type"]
    if kind not in ARCHITECTURES:
        raise cannot_export(
            f"A model of type {kind!r} cannot leave as GGUF yet; expected one of {', '.join(ARCHITECTURES)}.",
            "Take the safetensors format.",
        )
    config: Any = AutoConfig.for_model(**values)
    config.standardize_rope_params()
    if config.hidden_act != "silu":
        raise cannot_export(
            f"llama.cpp has no {kind} with the activation {config.hidden_act!r}; expected 'silu'."
        )
    _require_rope(config)
    return config


def architecture_of(config: Any) -> gguf.MODEL_ARCH:
    """The architecture of llama.cpp."""
    return ARCHITECTURES[config.model_type]


def head_size(config: Any) -> int:
    """Features of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def context_length(config: Any) -> int:
    """Tokens that the file promises: no more than a window of attention, which these architectures lack there."""
    window = getattr(config, "sliding_window", None)
    return min(filter(None, (config.max_position_embeddings, window)))


def rope_factors(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides each rotary frequency by (head size / 2,), where that is a tensor; else None."""
    if config.rope_parameters["rope_type"] != LLAMA3:
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[LLAMA3](config)
    size = head_size(config)
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    plain = config.rope_parameters["rope_theta"] ** -exponents
    return (plain / scaled.double()).float()


def add_general(writer: gguf.GGUFWriter, model: PackedModel, file_type: int) -> None:
    """What the model is called, of what it was made, by whom, and its license where files on this machine say it."""
    base, found = model.artifact.manifest["base_model"], origin(model.artifact)
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_quantized_by(QUANTIZED_BY)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(file_type)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base["name"])
    if found.hub_id:
        writer.add_base_model_organization(0, found.hub_id.partition("/")[0])
        writer.add_base_model_repo_url(0, f"{HUB}/{found.hub_id}")
    if base.get("revision"):
        writer.add_base_model_version(0, base["revision"])
    if found.license:
        writer.add_license(found.license["license"])


def add_architecture(writer: gguf.GGUFWriter, config: Any, vocabulary: int) -> None:
    """The sizes of the model and its rotary positions. vocabulary: rows of its embedding."""
    writer.add_vocab_size(vocabulary)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    size = head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    _add_rope(writer, config.rope_parameters)


def _add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(name) is not None:
                add(rope[name])


def _require_rope(config: Any) -> None:
    rope = config.rope_parameters
    kind = rope["rope_type"]
    foreign = sorted(name for name in FOREIGN_YARN if rope.get(name) is not None)
    reason = ""
    if kind not in ROPE_TYPES:
        reason = f"of type {kind!r}"
    elif kind == LLAMA3 and architecture_of(config) != gguf.MODEL_ARCH.LLAMA:
        reason = f"of type {kind!r} in a {config.model_type}"
    elif kind == "yarn" and foreign:
        reason = f"with {foreign[0]}"
    elif rope.get("partial_rotary_factor", 1) != 1:
        reason = "for a part of each head"
    if reason:
        raise cannot_export(
            f"The model has rotary positions {reason}, which llama.cpp does not know of this architecture.",
            "Take the safetensors format.",
        )
