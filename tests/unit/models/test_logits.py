"""The logits that are measured are the model's own, for heads that scale, multiply or cap."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernels.reference import dequantize
from tests.support.families import family_ids, family_model
from upq.layers import INT8, PackedLinear
from upq.models import head, last_hidden

#: Family -> its way of doing more than a product, far from doing nothing.
HEADS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 4.0},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "nanochat": {"final_logit_softcapping": 0.5},
}


@pytest.mark.parametrize("family", HEADS)
@torch.no_grad()
def test_the_head_gives_the_logits_of_the_model_bit_for_bit(family: str) -> None:
    model, ids = family_model(family, **HEADS[family]), family_ids()
    expected = model(input_ids=ids, use_cache=False).logits
    hidden = last_hidden(model, ids)
    assert torch.equal(head(model)(hidden), expected)
    assert torch.equal(head(model, exact=True)(hidden), expected), "float32 is exact already"
    torch.testing.assert_close(head(model)(hidden[0, 3:9]), expected[0, 3:9])
    plain = F.linear(hidden, model.get_output_embeddings().weight)
    assert (plain - expected).abs().max() > 0.1 * expected.abs().max(), "the head does nothing"


@torch.no_grad()
def test_the_model_is_as_it_was_behind_its_head() -> None:
    model, ids = family_model("cohere"), family_ids()
    before, modules = model(input_ids=ids).logits, dict(model.named_modules())
    to_logits = head(model, exact=True)
    to_logits(torch.randn(3, 64))
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(input_ids=ids).logits, before)


def test_gradients_go_through_the_head() -> None:
    model = family_model("granite")
    hidden = torch.randn(4, 64, requires_grad=True)
    head(model)(hidden)[:, 7].sum().backward()
    expected = model.lm_head.weight[7] / model.config.logits_scaling
    torch.testing.assert_close(hidden.grad, expected.expand(4, 64))


@torch.no_grad()
def test_exact_logits_of_a_16_bit_model_are_float32_and_not_rounded() -> None:
    model = family_model("cohere", torch.bfloat16)
    hidden = last_hidden(model, family_ids())
    wide = copy.deepcopy(model).float()
    expected = wide.lm_head(hidden.float()) * wide.logit_scale
    found = head(model, exact=True)(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    rounded = head(model)(hidden).float()
    assert (rounded - expected).abs().max() > 1e-3, "16 bits are shown to round"


@torch.no_grad()
def test_exact_logits_of_a_packed_head_are_those_of_its_float32_weight() -> None:
    model = family_model("cohere", torch.bfloat16)
    weight = model.lm_head.weight.float()
    packed = INT8.pack(weight, *INT8.fit(weight, 0))
    model.lm_head = PackedLinear(packed)
    hidden = torch.randn(3, 64).bfloat16()
    found = head(model, exact=True)(hidden)
    assert found.dtype == torch.float32
    expected = hidden.float() @ dequantize(packed).T * model.logit_scale
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
