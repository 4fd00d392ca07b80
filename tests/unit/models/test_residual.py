"""The readers and writers of the residual stream are found by what a model does, not by its names."""

from typing import Any

import pytest
import torch

from tests.support.families import family_model
from upq.errors import UserError
from upq.models import residual_of


def test_the_readers_and_writers_of_a_llama_are_all_its_linear_layers() -> None:
    residual = residual_of(family_model("llama"))
    first = "model.layers.0"
    assert residual.readers == {
        f"{first}.input_layernorm": [f"{first}.self_attn.{name}_proj" for name in "qkv"],
        f"{first}.post_attention_layernorm": [f"{first}.mlp.gate_proj", f"{first}.mlp.up_proj"],
        "model.layers.1.input_layernorm": [
            f"model.layers.1.self_attn.{name}_proj" for name in "qkv"
        ],
        "model.layers.1.post_attention_layernorm": [
            "model.layers.1.mlp.gate_proj",
            "model.layers.1.mlp.up_proj",
        ],
        "model.norm": ["lm_head"],
    }
    assert residual.writers == [
        f"model.layers.{index}.{name}"
        for index in range(2)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    ]
    assert residual.values == [
        (f"model.layers.{index}.self_attn.v_proj", f"model.layers.{index}.self_attn.o_proj", 16)
        for index in range(2)
    ]


def test_norms_of_queries_and_keys_are_none_of_the_streams() -> None:
    readers = residual_of(family_model("qwen3")).readers
    assert not [name for name in readers if "q_norm" in name or "k_norm" in name]


def test_fused_values_stay_as_they_are() -> None:
    residual = residual_of(family_model("phi3"))
    readers = residual.readers["model.layers.0.input_layernorm"]
    assert readers == ["model.layers.0.self_attn.qkv_proj"]
    assert residual.values == []


def test_a_norm_whose_outputs_are_scaled_before_they_are_read_is_named() -> None:
    model = family_model("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def scaled(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(2 * hidden_states, *args, **kwargs)

    attention.forward = scaled
    with pytest.raises(UserError, match=r"what model\.layers\.1\.input_layernorm gives") as caught:
        residual_of(model)
    assert caught.value.code == "unsupported_rotation"


def test_a_layer_that_neither_reads_the_stream_nor_writes_to_it_is_named() -> None:
    model = family_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda values: mlp.down_proj(mlp.up_proj(values) * mlp.gate_proj(values + 0))
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.gate_proj neither reads"):
        residual_of(model)
