"""A decoding step of the Llama family on a GPU, over transformers' own modules but without their small kernels.

Weights, packed or not, and the key-value cache stay where they are; only what lies between the products is fused
(kernels.gpu.decoding). Prompts are read by transformers' forward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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


class FusedStep:
    """The decoding step of one model that `unsupported` has no objection to.

    Making it joins layers that read the same activations (upq.decode.joined).
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = [_Block(layer, model.dtype, model.device) for layer in model.model.layers]

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: RowCache, span: int
    ) -> torch.Tensor:
        """One token for each row of the cache: tokens, positions (rows,) int64 -> logits (rows, vocabulary) float32.

        Stores keys and values at `positions`, which lie below `span`, a multiple of the cache's bucket.
        """
        from kernels.gpu.decoding import add_norm  # noqa: PLC0415  needs Triton

        body = self.model.model
        hidden = body.embed_tokens(tokens)
        cosine, sine = body.rotary_emb(hidden, positions.unsqueeze(0))
        place = Place(positions, cosine[0].contiguous(), sine[0].contiguous(), span)
        delta = torch.zeros_like(hidden)
        for index, block in enumerate(self.blocks):
            hidden, delta = block(hidden, delta, place, cache.keys[index], cache.values[index])
        _, normal = add_norm(hidden, delta, body.norm.weight, body.norm.variance_epsilon)
        return self.model.lm_head(normal).float()


class Place(NamedTuple):
    """Where the tokens of a step stand: positions (rows,), cosine and sine (rows, head size), the span of the cache."""

    positions: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    span: int


class _Block:
    """One decoder block: ten launches, where its weights can be joined and transformed before they are read."""

    def __init__(self, layer: Any, dtype: torch.dtype, device: torch.device) -> None:
        from upq.decode.joined import Joined  # noqa: PLC0415  needs Triton

        attention, network = layer.self_attn, layer.mlp
        queries_keys_values = attention.q_proj, attention.k_proj, attention.v_proj
        self.layer = layer
        self.queries_keys_values = Joined(queries_keys_values, dtype, device)
        self.out = Joined([attention.o_proj], dtype, device)
        self.gate_and_up = Joined([network.gate_proj, network.up_proj], dtype, device)
        self.down = Joined([network.down_proj], dtype, device)

    def __call__(
        self,
        hidden: torch.Tensor,
        delta: torch.Tensor,
        place: Place,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream (rows, hidden) with delta added, and what this block adds to it in turn."""
        from kernels.gpu.attention import attention  # noqa: PLC0415  needs Triton
        from kernels.gpu.decoding import add_norm, gate, rotate_and_store  # noqa: PLC0415  as above

        norm = self.layer.input_layernorm
        transform = self.queries_keys_values.transform
        hidden, normal = add_norm(hidden, delta, norm.weight, norm.variance_epsilon, transform)
        queries, new_keys, new_values = self.queries_keys_values(normal)
        queries = rotate_and_store(
            queries,
            new_keys,
            new_values,
            place.cosine,
            place.sine,
            place.positions,
            keys,
            values,
            norms=_head_norms(self.layer.self_attn),
        )
        seen = attention(
            queries,
            keys,
            values,
            place.positions,
            span=place.span,
            scaling=self.layer.self_attn.scaling,
            transform=self.out.transform,
        )
        (delta,) = self.out(seen)
        norm, transform = self.layer.post_attention_layernorm, self.gate_and_up.transform
        hidden, normal = add_norm(hidden, delta, norm.weight, norm.variance_epsilon, transform)
        gates, up = self.gate_and_up(normal)
        (delta,) = self.down(gate(gates, up, self.down.transform))
        return hidden, delta


def _head_norms(attention: Any) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Weights and epsilon of the norms that Qwen3 gives its queries and keys."""
    if not hasattr(attention, "q_norm"):
        return None
    norm = attention.q_norm
    return norm.weight, attention.k_norm.weight, norm.variance_epsilon
