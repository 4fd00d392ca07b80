"""Small random models of many families, each with what becomes of it: supported, or the code it is refused with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import SPECIAL_TOKENS, make_tokenizer
from upq.models.experts import mixtures

SHAPE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
    "bos_token_id": SPECIAL_TOKENS.index("<|im_start|>"),
    "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
}
WIDE = {"head_dim": 16}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
NARROW = {"sliding_window": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FINE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SHARED = {"shared_intermediate_size": 64}
#: One dense layer, then experts beside a shared one, as DeepSeek has them.
DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Family:
    """settings: of its config, beside SHAPE. refused: the code of the error that it is refused with; "": supported."""

    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


#: By transformers' model_type.
FAMILIES = {
    "afmoe": Family({**WIDE, **FINE, "num_dense_layers": 1}),
    "apertus": Family(),
    "bloom": Family(),
    "cohere": Family({"logit_scale": 0.25}),
    "cohere2": Family({"logit_scale": 0.25, **NARROW}),
    "cohere2_moe": Family({**WIDE, **FINE}),
    "deepseek_v2": Family({**DEEPSEEK, **LATENT}),
    "deepseek_v3": Family({**DEEPSEEK, **LATENT}),
    "dots1": Family({**DEEPSEEK, **WIDE}),
    "ernie4_5": Family(),
    "ernie4_5_moe": Family({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64}),
    "exaone4": Family({"sliding_window_pattern": 2, **NARROW}),
    "exaone_moe": Family({**WIDE, **FINE}),
    "falcon": Family(),
    "falcon_h1": Family(
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
        | {"mamba_n_groups": 1, "lm_head_multiplier": 0.3}
    ),
    "flex_olmo": Family(FINE),
    "gemma2": Family(WIDE),
    "gemma3_text": Family(WIDE),
    "gemma4_text": Family(
        {**WIDE, **FINE, "enable_moe_block": True, "top_k_experts": 2}
        | {"hidden_size_per_layer_input": 0}
    ),
    "glm4": Family(WIDE),
    "glm4_moe": Family({**DEEPSEEK, **WIDE}),
    "glm4_moe_lite": Family({**DEEPSEEK, **LATENT}),
    "gpt2": Family(GPT, "nothing_to_quantize"),
    "gpt_neox": Family(),
    "gpt_oss": Family({**WIDE, **EXPERTS, **NARROW}),
    "gptj": Family({**GPT, "n_positions": 512, "rotary_dim": 8}),
    "granite": Family({"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "granitemoe": Family(EXPERTS),
    "granitemoehybrid": Family(
        {**EXPERTS, **SHARED, "layer_types": ["attention", "attention"]}
        | {"position_embedding_type": "rope"}
    ),
    "granitemoeshared": Family({**EXPERTS, **SHARED}),
    "hunyuan_v1_moe": Family(
        {**WIDE, "num_experts": 4, "moe_topk": 2, "moe_intermediate_size": [64, 64]}
    ),
    "hyperclovax": Family({"logits_scaling": 0.5}),
    "jamba": Family(
        {"num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 1}
        | {"expert_layer_offset": 0, "attn_layer_period": 1, "attn_layer_offset": 0}
    ),
    "jetmoe": Family(EXPERTS, "nothing_to_quantize"),
    "lfm2": Family(),
    "lfm2_moe": Family({**FINE, "num_dense_layers": 1, "layer_types": ["full_attention", "conv"]}),
    "llama": Family(),
    "llama4_text": Family(
        {**WIDE, "intermediate_size_mlp": 128, "num_local_experts": 2, "moe_layers": []}
        | {"no_rope_layers": [1, 0], "attention_chunk_size": 8}
    ),
    "mamba": Family({"state_size": 8}, "unsupported_arch"),
    "minimax": Family({**WIDE, **EXPERTS}),
    "minimax_m2": Family({**WIDE, **EXPERTS}),
    "mistral": Family(),
    "mixtral": Family(EXPERTS),
    "nanochat": Family(),
    "nemotron_h": Family(
        {**WIDE, **DEEPSEEK, "layers_block_type": ["attention", "moe"]}
        | {"moe_shared_expert_intermediate_size": 64}
    ),
    "olmo": Family(),
    "olmo2": Family(),
    "olmoe": Family(FINE),
    "opt": Family({"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "phi": Family(),
    "phi3": Family(),
    "phimoe": Family(EXPERTS),
    "qwen2": Family(),
    "qwen2_moe": Family({**FINE, "shared_expert_intermediate_size": 64}),
    "qwen3": Family(WIDE),
    "qwen3_moe": Family({**WIDE, **FINE}),
    "qwen3_next": Family(
        {**WIDE, **FINE, "shared_expert_intermediate_size": 64}
        | {"layer_types": ["full_attention", "linear_attention"]}
    ),
    "seed_oss": Family(WIDE),
    "smollm3": Family(),
    "solar_open": Family({**DEEPSEEK, **WIDE}),
    "stablelm": Family(),
    "starcoder2": Family(),
    "zamba2": Family(
        {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"]}
        | {"mamba_d_state": 16, "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_ngroups": 1}
        | {"num_mem_blocks": 1},
        "unsupported_arch",
    ),
}


@torch.no_grad()
def family_model(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A random model of a family, with logits that are not flat and biases that are not zero."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **FAMILIES[kind].settings, **settings})
    model: Any = AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.08)
        elif "bias" in name:
            parameter.normal_(std=0.3)
    return model.to(dtype).eval().requires_grad_(False)


def family_folder(
    folder: Path, kind: str, change: Callable[[Any], None] | None = None, **options: Any
) -> Path:
    """A folder with a model of a family, changed where asked for, and its tokenizer; float16 if no dtype is given."""
    model = family_model(kind, **{"dtype": torch.float16, **options})
    if change is not None:
        with torch.no_grad():
            change(model)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def family_ids(rows: int = 2, tokens: int = 20) -> torch.Tensor:
    """The same token ids every time, (rows, tokens)."""
    return torch.randint(6, 262, (rows, tokens), generator=torch.Generator().manual_seed(1))


def same_choices(model: Any, other: Any) -> dict[str, list[Any]]:
    """Let the routers of `other` choose what those of `model`, which runs first, chose; returns what is yet to be used,
    by mixture.
    """
    waiting: dict[str, list[Any]] = {}

    def join(experts: nn.Module, others: nn.Module, chosen: list[Any]) -> None:
        experts.register_forward_pre_hook(lambda _, inputs: chosen.append(inputs[1:]))
        others.register_forward_pre_hook(lambda _, inputs: (inputs[0], *chosen.pop(0)))

    for name, experts, _ in mixtures(model):
        join(experts, other.get_submodule(name), waiting.setdefault(name, []))
    return waiting
