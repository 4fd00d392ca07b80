"""A decoding step of the Llama family on a GPU, over transformers' own modules but without their small kernels.

Weights, packed or not, and the key-value cache stay where they are; only what lies between the products is fused
(kernels.gpu.decoding). Prompts are read by transformers' forward.
"""

from __future__ import annotations

from typing import Any

import torch

from upq.decode.row_cache import RowCache

#: Models whose blocks are RMS norm, rotary attention and a gated network, and nothing else.
FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def unsupported(model: Any) -> str:
    """Why a step of this model cannot be fused; "" where it can."""
    if type(model).__name__ not in FAMILY:
        return f"{type(model).__name__} is not one of {', '.join(FAMILY)}"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in {model.dtype}".replace("torch.", "")
    if model.config.hidden_act != "silu":
        return f"activation {model.config.hidden_act}"
    size = model.model.layers[0].self_attn.head_dim
    if size < 16 or size & (size - 1) or size > 256:
        return f"attention heads of size {size}"
    try:
        import triton  # noqa: F401, PLC0415  not on every platform
    except ImportError:
        return "Triton is not installed"
    return ""


def step(
    model: Any, tokens: torch.Tensor, positions: torch.Tensor, cache: RowCache, span: int
) -> torch.Tensor:
    """One token for each row of the cache: tokens, positions (rows,) int64 -> logits (rows, vocabulary) float32.

    Stores keys and values at `positions`, which lie below `span`, a multiple of the cache's bucket.
    """
    from kernels.gpu import decoding as fused  # noqa: PLC0415  needs Triton

    body = model.model
    hidden = body.embed_tokens(tokens)
    cosine, sine = body.rotary_emb(hidden, positions.unsqueeze(0))
    cosine, sine = cosine[0].contiguous(), sine[0].contiguous()
    delta = torch.zeros_like(hidden)
    for index, layer in enumerate(body.layers):
        attention, network = layer.self_attn, layer.mlp
        norm = layer.input_layernorm
        hidden, normal = fused.add_norm(hidden, delta, norm.weight, norm.variance_epsilon)
        queries = fused.rotate_and_store(
            *(
                projection(normal)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            ),
            cosine,
            sine,
            positions,
            cache.keys[index],
            cache.values[index],
            norms=_head_norms(attention),
        )
        seen = fused.attention(
            queries,
            cache.keys[index],
            cache.values[index],
            positions,
            span=span,
            scaling=attention.scaling,
        )
        norm = layer.post_attention_layernorm
        delta = attention.o_proj(seen)
        hidden, normal = fused.add_norm(hidden, delta, norm.weight, norm.variance_epsilon)
        delta = network.down_proj(fused.gate(network.gate_proj(normal), network.up_proj(normal)))
    _, normal = fused.add_norm(hidden, delta, body.norm.weight, body.norm.variance_epsilon)
    return model.lm_head(normal).float()


def _head_norms(attention: Any) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Weights and epsilon of the norms that Qwen3 gives its queries and keys."""
    if not hasattr(attention, "q_norm"):
        return None
    norm = attention.q_norm
    return norm.weight, attention.k_norm.weight, norm.variance_epsilon
