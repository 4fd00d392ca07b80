"""Stacked experts taken apart: the same weights, the same logits, each expert a matrix of its own, or a refusal."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.support.families import FAMILIES, SHAPE, family_folder, family_ids, family_model
from upq.errors import UserError
from upq.models import RoutedExperts, load, plan_layers
from upq.models import experts as experts_module
from upq.models.experts import expert_of, mixtures, stacked_experts, unstack_experts
from upq.models.skeleton import skeleton
from upq.models.trial import unstack_alike, vet_parts

#: Gate and up in one; stored (in, out) with biases and an activation of its own; up alone.
LAYOUTS = ["qwen2_moe", "gpt_oss", "nemotron_h"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=family_ids(), use_cache=False).logits


@pytest.mark.parametrize("kind", LAYOUTS)
def test_experts_keep_their_weights_and_the_model_its_logits(kind: str) -> None:
    stacked = family_model(kind)
    model = copy.deepcopy(stacked)
    unstack_experts(model)
    assert not stacked_experts(model)
    torch.testing.assert_close(logits(model), logits(stacked))
    for name, one in stacked_experts(stacked).items():
        for parameter, whole in one.named_parameters():
            for number, expected in enumerate(whole):
                layer, part = parameter.removesuffix("_bias"), "weight"
                if parameter.endswith("_bias"):
                    part = "bias"
                elif kind == "gpt_oss":
                    expected = expected.T
                assert torch.equal(model.get_parameter(f"{name}.{number}.{layer}.{part}"), expected)


def test_matrices_that_are_stored_as_linear_layers_have_them_stay_where_they_are() -> None:
    model = family_model("mixtral")
    (name, stacked), *_ = stacked_experts(model).items()
    place = stacked.get_parameter("down_proj").data_ptr()
    unstack_experts(model)
    assert model.get_parameter(f"{name}.0.down_proj.weight").data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_sound_mixture_passes_its_trial(kind: str, dtype: torch.dtype) -> None:
    model = family_model(kind, dtype)
    unstack_alike(model)
    vet_parts(model)


def test_experts_that_compute_something_else_one_by_one_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = RoutedExperts.forward
    monkeypatch.setattr(RoutedExperts, "forward", lambda *args: forward(*args) * 1.01)
    with pytest.raises(UserError) as caught:
        unstack_alike(family_model("mixtral"))
    assert caught.value.code == "unsupported_arch"
    assert "model.layers.0.mlp.experts computes something else" in caught.value.message


def test_experts_that_are_called_in_a_way_of_their_own_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RoutedExperts, "forward", lambda self, hidden_states: hidden_states)
    with pytest.raises(UserError, match="cannot be run expert by expert") as caught:
        unstack_alike(family_model("mixtral"))
    assert caught.value.code == "unsupported_arch"


def test_each_expert_is_quantized_and_what_chooses_among_them_is_not() -> None:
    model = family_model("qwen2_moe")
    unstack_experts(model)
    plan = {entry.name: entry for entry in plan_layers(model, 32)}
    for number in range(4):
        assert plan[f"model.layers.0.mlp.experts.{number}.gate_up_proj"].shape == (128, 64)
        assert plan[f"model.layers.0.mlp.experts.{number}.down_proj"].quantize
    assert plan["model.layers.0.mlp.shared_expert.up_proj"].quantize
    for router in ("gate.weight", "shared_expert_gate"):
        assert "router" in plan[f"model.layers.0.mlp.{router}"].reason


@pytest.mark.parametrize(
    ("kind", "router"), [("afmoe", "mlp.router.gate"), ("hunyuan_v1_moe", "mlp.gate.wg")]
)
def test_a_linear_layer_inside_a_router_stays(kind: str, router: str) -> None:
    model = family_model(kind)
    unstack_experts(model)
    plan = {entry.name: entry for entry in plan_layers(model, 32)}
    assert "router" in plan[f"model.layers.1.{router}"].reason


def test_a_number_that_no_expert_has_adds_nothing_and_rows_are_told_only_during_a_call() -> None:
    model = family_model("mixtral")
    unstack_experts(model)
    ((_, experts, _), *_) = mixtures(model)
    hidden = torch.randn(3, 64)
    chosen, weights = torch.tensor([[0, 4], [4, 0], [4, 4]]), torch.full((3, 2), 0.5)
    seen: list[list[int]] = []
    expert = experts.expert(0)
    assert expert_of(model, "model.layers.0.mlp.experts.0.down_proj") is expert
    assert expert_of(model, "model.layers.0.self_attn.q_proj") is None

    def look(module: Any, _inputs: Any) -> None:
        seen.append(module.rows.tolist())

    expert.register_forward_pre_hook(look)
    found = experts(hidden, chosen, weights)
    assert seen == [[0, 1]]
    assert expert.rows is None
    assert not found[2].any()
    alone = experts(hidden, torch.zeros(3, 1, dtype=torch.int64), torch.full((3, 1), 0.5))
    torch.testing.assert_close(found[:2], alone[:2])


@pytest.mark.parametrize(("kind", "chosen"), [("mixtral", 2), ("deepseek_v3", 2)])
def test_a_router_tells_how_many_experts_a_token_meets(kind: str, chosen: int) -> None:
    model = family_model(kind)
    unstack_experts(model)
    assert {(experts.count, top) for _, experts, top in mixtures(model)} == {(4, chosen)}


def test_a_skeleton_has_the_names_of_the_loaded_model(tmp_path: Path) -> None:
    loaded = load(str(family_folder(tmp_path, "gpt_oss"))).model
    config = AutoConfig.for_model("gpt_oss", **{**SHAPE, **FAMILIES["gpt_oss"].settings})
    shapes = {name: weight.shape for name, weight in skeleton(config).named_parameters()}
    assert shapes == {name: weight.shape for name, weight in loaded.named_parameters()}


def test_more_experts_than_anybody_makes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_module, "MOST_EXPERTS", 7)
    with pytest.raises(UserError, match="8 experts; at most 7") as caught:
        unstack_experts(family_model("mixtral"))
    assert caught.value.code == "bad_config"
