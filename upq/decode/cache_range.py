"""How large the keys and values of a model of the Llama family can become, whatever it reads.

An RMS norm gives a vector of at most sqrt(hidden) length times its weights, so each key and value is bounded by the
length of its row of the weight (Cauchy-Schwarz). The C engine keeps both in float16 and must not overflow.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kernels.packing import PackedWeight
from kernels.reference import weight_of

#: What activations in 8 bits may add to the length of what a matrix reads: at most sqrt(span) / 254, spans of 128.
ROUNDED = 1.05


@torch.no_grad()
def largest_cached(model: Any) -> float:
    """A bound on the absolute value of every key and value that the model can put into its cache."""
    turned = getattr(model.model.rotary_emb, "attention_scaling", 1.0)
    found: list[float] = []
    for block in model.model.layers:
        attention = block.self_attn
        norm = block.input_layernorm.weight.float()
        value = _bound(attention.v_proj, norm)
        # A rotation mixes two entries of a key.
        key = math.sqrt(2) * _bound(attention.k_proj, norm)
        if hasattr(attention, "k_norm"):
            weight = attention.k_norm.weight.float()
            key = math.sqrt(len(weight)) * weight.abs().max().item()
        found += [value, key * turned]
    return torch.tensor(found).max().item()  # NaN where one is


def _bound(layer: Any, norm: torch.Tensor) -> float:
    """The largest absolute output of a layer behind an RMS norm with these weights."""
    packed = getattr(layer, "packed", None)
    weight = weight_of(packed) if isinstance(packed, PackedWeight) else layer.weight.float()
    outputs = (weight * norm).norm(dim=1) * math.sqrt(len(norm)) * ROUNDED
    return (outputs if layer.bias is None else outputs + layer.bias.float().abs()).max().item()
