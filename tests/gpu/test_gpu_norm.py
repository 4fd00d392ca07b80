"""RMS norms as an NVIDIA GPU runs them while a model trains; tests/unit/kernels/test_triton_norm.py interprets them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.support.gpu_cases import sized
from tests.unit.kernels.test_triton_norm import passed
from upq.training.fused_norms import fused_norms
from upq.training.trainables import _norm_gains

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
SMALL = [(2, 3, 64), (5, 16384)]
SHAPES = sized([*SMALL, (4096, 576), (300, 4096)], SMALL)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_computes_the_norm_of_transformers(
    trains: bool, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    norm = LlamaRMSNorm(shape[-1], 1e-5).requires_grad_(False)
    nn.init.uniform_(norm.weight, -2, 2)
    model = nn.Sequential(norm).to("cuda", dtype)
    if trains:
        for gain in _norm_gains(model):
            nn.init.uniform_(gain.requires_grad_(), -0.5, 0.5)
    hidden, upstream = torch.randn(2, *shape, device="cuda").to(dtype)
    expected = passed(model[0], hidden, upstream)
    with fused_norms(model, dtype):
        assert "forward" in vars(model[0])
        found = passed(model[0], hidden, upstream)
        again = passed(model[0], hidden, upstream)
    assert all(map(torch.equal, found, again)), "training repeats to the last bit"
    near = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[0], expected[0], rtol=near, atol=near)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        error = (mine.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < 2 * near
