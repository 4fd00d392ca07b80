"""Small random models of many families, each with what becomes of it: supported, or the code it is refused with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import SPECIAL_TOKENS, make_tokenizer

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


@dataclass(frozen=True)
class Family:
    """settings: of its config, beside SHAPE. refused: the code of the error that it is refused with; "": supported."""

    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


#: By transformers' model_type.
FAMILIES = {
    "apertus": Family(),
    "bloom": Family(),
    "cohere": Family({"logit_scale": 0.25}),
    "cohere2": Family({"logit_scale": 0.25, **NARROW}),
    "ernie4_5": Family(),
    "exaone4": Family({"sliding_window_pattern": 2, **NARROW}),
    "falcon": Family(),
    "falcon_h1": Family(
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
        | {"mamba_n_groups": 1, "lm_head_multiplier": 0.3}
    ),
    "gemma2": Family(WIDE),
    "gemma3_text": Family(WIDE),
    "glm4": Family(WIDE),
    "gpt2": Family(GPT, "nothing_to_quantize"),
    "gpt_neox": Family(),
    "gpt_oss": Family({**WIDE, **EXPERTS, **NARROW}, "nothing_to_quantize"),
    "gptj": Family({**GPT, "n_positions": 512, "rotary_dim": 8}),
    "granite": Family({"logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "granitemoe": Family(EXPERTS, "nothing_to_quantize"),
    "hyperclovax": Family({"logits_scaling": 0.5}),
    "lfm2": Family(),
    "llama": Family(),
    "llama4_text": Family(
        {**WIDE, "intermediate_size_mlp": 128, "num_local_experts": 2, "moe_layers": []}
        | {"no_rope_layers": [1, 0], "attention_chunk_size": 8}
    ),
    "mamba": Family({"state_size": 8}, "unsupported_arch"),
    "mistral": Family(),
    "mixtral": Family({"num_local_experts": 4}, "nothing_to_quantize"),
    "nanochat": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "opt": Family({"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "phi": Family(),
    "phi3": Family(),
    "qwen2": Family(),
    "qwen3": Family(WIDE),
    "qwen3_moe": Family(
        {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        "nothing_to_quantize",
    ),
    "seed_oss": Family(WIDE),
    "smollm3": Family(),
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
