"""Small models of every family that leaves as GGUF, packed on every grid, and what a written file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kernels.packing import PackedWeight
from tests.conftest import make_tokenizer
from upq.artifact import assembly
from upq.config import RunConfig
from upq.export import PackedModel, opened
from upq.layers import INT8, Grid
from upq.models import LoadedModel, load, plan_layers

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
#: Family -> what its config has beside SHAPE. transformers reads no head size from the GGUF of a Qwen3: all have 128.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
}


def small_model(folder: Path, family: str = "llama", **changes: Any) -> LoadedModel:
    """A random model whose norms and biases are not all alike, as it is loaded from a folder."""
    tokenizer = make_tokenizer([("h", "e")])
    torch.manual_seed(0)
    values = {**SHAPE, **FAMILIES[family], "vocab_size": len(tokenizer), **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) / 8
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(str(folder))


def rounded(loaded: LoadedModel, name: str, grid: Grid, group: int) -> PackedWeight:
    """One layer rounded to the nearest codes."""
    weight = loaded.model.get_parameter(f"{name}.weight")
    return grid.pack(weight, *grid.fit(weight, group, "absmax"))


def packed_model(
    loaded: LoadedModel,
    grid: Grid,
    group: int = 64,
    embedding_bits: Literal[8, 16] = 8,
    embedding_grid: Grid = INT8,
) -> PackedModel:
    """A model rounded to the nearest codes and opened for exporters."""
    packed = {
        layer.name: rounded(loaded, layer.name, grid, group)
        for layer in plan_layers(loaded.model, 0)
    }
    config = RunConfig(embedding_bits=embedding_bits)
    artifact = assembly.build(
        f"INT{grid.bits}", packed, loaded, config, embedding_grid=embedding_grid
    )
    return opened(artifact, loaded.info.name)


def decoded_model(model: PackedModel) -> Any:
    """A float model of transformers with the weights that the artifact stands for, rounded to float16."""
    config = dict(model.config)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    values = {f"{name}.weight": model.weight(name) for name in model.layers} | model.plain
    rounded = {name: value.half().float() for name, value in values.items()}
    missing, unexpected = made.load_state_dict(rounded, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    made.tie_weights()
    return made.eval()
