"""A rewritten model is the same function with other weights, or is refused with the reason."""

import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.support.families import FAMILIES, family_ids, family_model
from upq.config import Int2Config, RotationKind
from upq.errors import UserError
from upq.quantize.absorb import absorbed, rewritten

PAGE = Path(__file__).resolve().parents[3] / "docs" / "families.md"
#: What is said of a family whose weights cannot absorb a rotation.
REFUSED = {
    "bloom": "no single norm behind its blocks",
    "cohere": "input_layernorm computes something else",
    "cohere2": "input_layernorm computes something else",
    "exaone4": "reads what model.layers.0.post_attention_layernorm gives",
    "falcon": "input_layernorm computes something else",
    "falcon_h1": "reads what model.layers.0.input_layernorm gives",
    "gemma2": "input_layernorm computes something else",
    "gemma3_text": "input_layernorm computes something else",
    "glm4": "reads what model.layers.0.post_self_attn_layernorm gives",
    "gpt_neox": "input_layernorm computes something else",
    "gptj": "ln_1 computes something else",
    "hyperclovax": "reads what model.layers.0.post_norm1 gives",
    "olmo": "input_layernorm computes something else",
    "olmo2": "reads what model.layers.0.self_attn.q_norm gives",
    "opt": "final_layer_norm computes something else",
    "phi": "input_layernorm computes something else",
    "stablelm": "input_layernorm computes something else",
    "starcoder2": "input_layernorm computes something else",
}
#: Families whose experts are chosen by a router, which reads what a norm gives as well.
MIXTURES = re.findall(
    r"^\| `(\w+)` \| supported \| a mixture of experts",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE,
)
SOUND = [
    kind
    for kind, family in FAMILIES.items()
    if not family.refused and kind not in REFUSED and kind not in MIXTURES
]
KINDS = get_args(RotationKind)


def asked(kind: RotationKind = "orthogonal") -> Int2Config:
    return Int2Config(rotation="absorbed", absorbed_kind=kind, rotation_block=16)


def uneven(kind: str, **settings: Any) -> Any:
    """A random model whose norms weigh each feature differently."""
    model = family_model(kind, **settings)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
    return model


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=family_ids(), use_cache=False).logits.float()


def largest_difference(model: Any, other: Any) -> float:
    """As a share of the largest logit."""
    wanted = logits(model)
    return float((logits(other) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("rotation", KINDS)
@pytest.mark.parametrize("kind", SOUND)
def test_a_rewritten_model_gives_the_same_logits_with_other_weights(
    kind: str, rotation: RotationKind
) -> None:
    model = uneven(kind)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: value.clone() for name, value in parameters.items()}
    turned = rewritten(model, asked(rotation), 0)
    assert largest_difference(model, turned) < 1e-5
    for name, value in parameters.items():
        assert torch.equal(value, before[name]), "the model itself stays as it is"
    for name, value in turned.named_parameters():
        if value.dim() == 2 or "o_proj" in name or "down_proj" in name:
            assert not torch.allclose(value, before[name], atol=1e-3), name
        elif name.endswith(("input_layernorm.weight", "model.norm.weight")):
            assert torch.equal(value, torch.ones_like(value)), name


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_that_a_rotation_would_change_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(UserError, match=REFUSED[kind]) as caught:
        rewritten(uneven(kind), asked(), 0)
    assert caught.value.code == "unsupported_rotation"
    assert "rotation=input" in caught.value.hint


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match="cannot absorb a rotation") as caught:
        rewritten(uneven(kind), asked(), 0)
    assert caught.value.code == "unsupported_rotation"


def test_the_page_names_the_families_that_can_and_those_that_cannot() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Rotations that the weights absorb")[2]
    rows = re.findall(
        r"^\| (supported|`unsupported_rotation`).* \| (.*) \|$", section, re.MULTILINE
    )
    named = {True: [], False: []}
    for result, families in rows:
        named[result == "supported"] += re.findall(r"`(\w+)`", families)
    assert (sorted(named[True]), sorted(named[False])) == (sorted(SOUND), sorted(REFUSED))


def test_the_values_of_each_head_are_turned_and_their_biases_with_them() -> None:
    model = uneven("qwen2")
    turned = rewritten(model, asked(), 0)
    attention, other = (one.model.layers[0].self_attn for one in (model, turned))
    before, after = (one.v_proj.bias.unflatten(0, (-1, one.head_dim)) for one in (attention, other))
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(before @ before.T, after @ after.T)  # one rotation for all heads
    assert torch.equal(attention.q_proj.bias, other.q_proj.bias)


def test_a_tied_head_is_untied_and_takes_the_last_norm_with_it() -> None:
    model = uneven("llama", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    turned = rewritten(model, asked(), 0)
    assert turned.lm_head.weight is not turned.model.embed_tokens.weight
    assert not turned.config.tie_word_embeddings
    assert model.config.tie_word_embeddings
    assert largest_difference(model, turned) < 1e-5
    gain = (turned.lm_head.weight @ turned.lm_head.weight.T).diagonal()
    wanted = (model.lm_head.weight * model.model.norm.weight).square().sum(1)
    torch.testing.assert_close(gain, wanted)


def test_a_seed_decides_and_decides_all() -> None:
    model = uneven("llama")
    first, again, other = (absorbed(model, asked(), seed) for seed in (0, 0, 1))
    for name, value in first.named_parameters():
        assert torch.equal(value, again.get_parameter(name))
    embedding = first.model.embed_tokens.weight
    assert not torch.allclose(embedding, other.model.embed_tokens.weight, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_kept_has_values_of_float16_and_the_width_of_the_model(dtype: torch.dtype) -> None:
    model = uneven("qwen2").to(dtype)
    turned = absorbed(model, asked(), 0)
    wide = dtype == torch.float32
    assert {value.dtype for value in turned.parameters()} == {
        torch.float32 if wide else torch.float16
    }
    assert turned.dtype == turned.config.dtype
    for value in turned.parameters():
        assert torch.equal(value.half().float(), value.float())
    assert largest_difference(copy.deepcopy(model).float(), turned.float()) < 5e-3


def test_weights_beyond_float16_are_refused() -> None:
    model = uneven("llama")
    model.model.layers[0].mlp.up_proj.weight.mul_(1e7)
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj.weight would go beyond the range"):
        absorbed(model, asked(), 0)


def test_a_function_that_would_change_is_refused_by_its_logits() -> None:
    model = uneven("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.o_proj.forward
    # A non-linear layer between the values and the stream: no rotation passes it.
    attention.o_proj.forward = lambda values: forward(values.relu())
    with pytest.raises(UserError, match="logits would change by") as caught:
        rewritten(model, asked(), 0)
    assert caught.value.code == "unsupported_rotation"
