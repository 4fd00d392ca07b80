"""Blocks, linears and the quantization plan of every style of model, found by structure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from tests.conftest import SPECIAL_TOKENS, make_tokenizer
from tests.support.grids import round_trip
from upq.errors import UserError
from upq.layers import Grid
from upq.models import (
    LoadedModel,
    decoder_blocks,
    load,
    longest_sequence,
    parameter_names,
    plan_embeddings,
    plan_layers,
)
from upq.models.structure import UNLIMITED, block_linears

LAYERS = 3
SHAPE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
    "bos_token_id": SPECIAL_TOKENS.index("<|im_start|>"),
    "pad_token_id": SPECIAL_TOKENS.index("<|pad|>"),
}
SPLIT = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
FUSED = {
    "self_attn.o_proj": (64, 64),
    "self_attn.qkv_proj": (128, 64),
    "mlp.gate_up_proj": (256, 64),
    "mlp.down_proj": (64, 128),
}
STYLES = {
    "llama": (LlamaConfig(**SHAPE), SPLIT),
    "qwen2": (Qwen2Config(**SHAPE), SPLIT),
    "qwen3": (Qwen3Config(**SHAPE, head_dim=16), SPLIT),
    "mistral": (MistralConfig(**SHAPE), SPLIT),
    "gemma2": (Gemma2Config(**SHAPE, head_dim=16), SPLIT),
    "gemma3": (Gemma3TextConfig(**SHAPE, head_dim=16), SPLIT),
    "phi3": (Phi3Config(**SHAPE), FUSED),
}


def build(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("style", STYLES)
def test_each_style_loads_from_a_folder_and_its_linears_are_found(
    style: str, tmp_path: Path
) -> None:
    config, expected = STYLES[style]
    original = build(config)
    original.save_pretrained(tmp_path / style)
    make_tokenizer().save_pretrained(tmp_path / style)

    loaded = load(str(tmp_path / style))

    name, blocks = decoder_blocks(loaded.model)
    assert (name, len(blocks)) == ("model.layers", LAYERS)
    for block in blocks:
        shapes = {key: tuple(layer.weight.shape) for key, layer in block_linears(block).items()}
        assert shapes == expected
        assert list(shapes) == [key for key, _ in block.named_modules() if key in expected]
    plan = plan_layers(loaded.model, 32)
    assert all(entry.quantize and not entry.reason for entry in plan)
    assert {entry.name: entry.shape for entry in plan} == {
        f"{name}.{index}.{key}": shape for index in range(LAYERS) for key, shape in expected.items()
    }
    saved = original.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_group_that_does_not_divide_a_width_skips_that_layer_with_a_reason(
    tiny: LoadedModel,
) -> None:
    for block in tiny.model.model.layers:
        block.mlp.down_proj = torch.nn.Linear(96, 64, bias=False)
    skipped = [entry for entry in plan_layers(tiny.model, 64) if not entry.quantize]
    assert [entry.name for entry in skipped] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert {entry.reason for entry in skipped} == {"group size 64 does not divide 96 inputs"}
    assert all(entry.quantize for entry in plan_layers(tiny.model, 0))


def test_a_width_that_does_not_fill_bytes_is_skipped_even_per_channel(tiny: LoadedModel) -> None:
    tiny.model.model.layers[1].mlp.down_proj = torch.nn.Linear(126, 64)
    (skipped,) = [entry for entry in plan_layers(tiny.model, 0) if not entry.quantize]
    assert skipped.name == "model.layers.1.mlp.down_proj"
    assert "126 inputs do not fill whole bytes" in skipped.reason


def test_a_weight_shared_between_blocks_is_skipped(tiny: LoadedModel) -> None:
    first, second = tiny.model.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    skipped = {entry.name: entry.reason for entry in plan_layers(tiny.model, 0) if entry.reason}
    assert skipped["model.layers.1.self_attn.q_proj"] == (
        "its weight is shared with model.layers.0.self_attn.q_proj.weight"
    )
    assert len(skipped) == 2


def test_routers_and_stacked_experts_are_listed_and_skipped() -> None:
    config = Qwen2MoeConfig(
        **SHAPE, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=256,
    )  # fmt: skip
    plan = {entry.name: entry for entry in plan_layers(build(config), 32)}
    gate = plan["model.layers.0.mlp.shared_expert_gate"]
    assert not gate.quantize
    assert "router" in gate.reason
    experts = plan["model.layers.0.mlp.experts.gate_up_proj"]
    assert not experts.quantize
    assert "3-D weight" in experts.reason
    assert not plan["model.layers.0.mlp.gate.weight"].quantize
    assert plan["model.layers.0.mlp.shared_expert.up_proj"].quantize


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=262), "Conv1D is not a linear"),
        (MixtralConfig(**SHAPE, num_local_experts=4), "3-D weight"),
    ],
    ids=["gpt2", "mixtral"],
)
def test_a_model_of_mostly_unusable_weights_is_refused(
    config: PreTrainedConfig, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan_layers(build(config), 32)
    assert caught.value.code == "nothing_to_quantize"
    assert reason in caught.value.message


def test_conv1d_shapes_are_listed_as_out_by_in() -> None:
    model = build(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=262))
    for block in model.transformer.h:  # enough true linears that the plan is accepted
        block.extra = torch.nn.Linear(1024, 1024)
    shapes = {entry.name: entry.shape for entry in plan_layers(model, 32)}
    assert shapes["transformer.h.0.attn.c_attn.weight"] == (192, 64)


def test_a_group_wider_than_every_layer_leaves_nothing_to_quantize(tiny: LoadedModel) -> None:
    with pytest.raises(UserError, match="group size 256 does not divide 64 inputs") as caught:
        plan_layers(tiny.model, 256)
    assert caught.value.code == "nothing_to_quantize"


def test_a_longer_list_inside_a_block_is_not_taken_for_the_blocks(tiny: LoadedModel) -> None:
    experts = [torch.nn.Sequential(torch.nn.Linear(64, 64)) for _ in range(9)]
    tiny.model.model.layers[0].experts = torch.nn.ModuleList(experts)
    assert decoder_blocks(tiny.model)[0] == "model.layers"


def test_the_blocks_of_an_encoder_style_stack_are_found_by_structure_too() -> None:
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, is_decoder=True)
    name, blocks = decoder_blocks(BertLMHeadModel(config))
    assert (name, len(blocks)) == ("bert.encoder.layer", 2)


def test_a_model_without_blocks_is_refused(tiny: LoadedModel) -> None:
    tiny.model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UserError) as caught:
        decoder_blocks(tiny.model)
    assert caught.value.code == "unsupported_arch"


def test_a_tied_pair_is_planned_once_and_an_untied_one_twice(tiny: LoadedModel) -> None:
    (tied,) = plan_embeddings(tiny.model)
    assert (tied.name, tied.shape, tied.quantize) == ("model.embed_tokens", (262, 64), True)
    assert ["model.embed_tokens.weight", "lm_head.weight"] in parameter_names(tiny.model)
    untied = plan_embeddings(build(LlamaConfig(**SHAPE)))
    assert [one.name for one in untied] == ["model.embed_tokens", "lm_head"]
    assert all(one.quantize for one in untied)


def test_an_embedding_that_computes_more_than_a_look_up_stays_with_its_reason() -> None:
    (entry,) = plan_embeddings(build(Gemma3TextConfig(**SHAPE, head_dim=16)))
    assert not entry.quantize
    assert entry.reason == "Gemma3TextScaledWordEmbedding is not a plain nn.Embedding"


def test_an_embedding_whose_weight_others_use_stays_with_its_reason(tiny: LoadedModel) -> None:
    tiny.model.model.extra = torch.nn.Linear(64, 262, bias=False)
    tiny.model.model.extra.weight = tiny.model.lm_head.weight
    (entry,) = plan_embeddings(tiny.model)
    assert not entry.quantize
    assert "shared with" in entry.reason
    assert "model.extra.weight" in entry.reason


def test_the_longest_sequence_is_what_the_config_says() -> None:
    assert longest_sequence(LlamaConfig(max_position_embeddings=512)) == 512
    assert longest_sequence(PreTrainedConfig()) == UNLIMITED


@pytest.mark.parametrize(
    ("factor", "word"), [(1e-6, "too small"), (0.0, "too small"), (1e7, "too large")]
)
def test_weights_that_float16_scales_cannot_hold_are_left_alone_by_name(
    factor: float, word: str, tiny: LoadedModel
) -> None:
    name = "model.layers.1.mlp.down_proj"
    tiny.model.get_parameter(f"{name}.weight").data.mul_(factor)
    for bits in (2, 4):
        skipped = {one.name: one.reason for one in plan_layers(tiny.model, 32, bits) if one.reason}
        assert skipped == {name: f"its weights are {word} for scales in float16"}
    assert all(one.quantize for one in plan_layers(tiny.model, 32)), "shapes alone are fine"


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [10.0**power for power in range(-6, 0)])
def test_a_layer_is_only_accepted_where_rounding_costs_what_it_costs_elsewhere(
    bits: int, size: float
) -> None:
    grid, weight = Grid(bits), torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def error(values: torch.Tensor) -> float:
        return ((round_trip(grid, values, *grid.fit(values, 64)) - values) / size).norm().item()

    usual = (round_trip(grid, weight, *grid.fit(weight, 64)) - weight).norm().item()
    accepted = not grid.misfit(weight * size, 64)
    assert accepted == (error(weight * size) < 1.5 * usual)


def test_every_layer_of_the_bundled_model_is_accepted(bundled: LoadedModel) -> None:
    for bits in (2, 4):
        assert all(one.quantize for one in plan_layers(bundled.model, 64, bits))
    assert all(one.quantize for one in plan_embeddings(bundled.model, 8))


def test_an_embedding_too_small_for_8_bits_stays(tiny: LoadedModel) -> None:
    tiny.model.get_parameter("model.embed_tokens.weight").data.mul_(1e-3)
    (entry,) = plan_embeddings(tiny.model, 8)
    assert entry.reason == "its weights are too small for scales in float16"


@pytest.mark.parametrize(
    ("config", "group", "hint"),
    [
        (MixtralConfig(**SHAPE, num_local_experts=4), 32, "or a dense model"),
        (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=262), 32, "consist of linear"),
        (LlamaConfig(**SHAPE), 96, "Set group_size"),
    ],
    ids=["stacked experts", "no linear layers", "group size"],
)
def test_the_hint_of_a_refusal_goes_by_its_reason(
    config: PreTrainedConfig, group: int, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan_layers(build(config), group)
    assert hint in caught.value.hint
    assert ("group_size" in caught.value.hint) == (hint == "Set group_size")
