"""RMS norms in Triton against those of transformers, in Triton's interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.support.helpers import examples
from upq.data import collate
from upq.models import LoadedModel, last_hidden
from upq.training.fused_norms import fused_norms
from upq.training.trainables import _norm_gains

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")


def passed(norm: Any, hidden: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, and the gradients by the inputs and by the gains where there are any."""
    leaves = [hidden.clone().requires_grad_()]
    leaves += [parameter for parameter in norm.parameters() if parameter.requires_grad]
    outputs = norm(leaves[0])
    return [outputs.detach(), *torch.autograd.grad(outputs, leaves, upstream)]


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 64), (300, 96), (1, 576)], ids=str)
def test_triton_computes_the_norm_of_transformers(
    trains: bool, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(shape[-1], 1e-5).requires_grad_(False)
    nn.init.uniform_(norm.weight, -2, 2)
    model = nn.Sequential(norm)
    model.to(dtype)
    if trains:
        for gain in _norm_gains(model):
            nn.init.uniform_(gain.requires_grad_(), -0.5, 0.5)
    hidden, upstream = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    expected = passed(model[0], hidden, upstream)
    with fused_norms(model, dtype):
        assert "forward" in vars(model[0])
        found = passed(model[0], hidden, upstream)
    assert "forward" not in vars(model[0])
    assert len(found) == 2 + trains
    near = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[0], expected[0], rtol=near, atol=near)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 2 * near


def test_norms_of_another_kind_stay_as_they_are() -> None:
    other: Any = GemmaRMSNorm(64)
    other.variance_epsilon = other.eps
    nn.init.ones_(other.weight)
    model = nn.Sequential(other, nn.LayerNorm(64), LlamaRMSNorm(64).half())
    with fused_norms(model, torch.float32):
        assert not any("forward" in vars(one) for one in model)


def test_a_model_with_fused_norms_gives_its_hidden_states(tiny: LoadedModel) -> None:
    ids = collate(examples(3)).ids
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        expected = last_hidden(model, ids)
        with fused_norms(model, torch.float32):
            assert sum("forward" in vars(module) for module in model.modules()) == 5
            found = last_hidden(model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
