"""Fake quantization as an NVIDIA GPU runs it; tests/unit/kernels/test_triton_training.py interprets it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.gpu.training import DTYPES, settle
from tests.support.gpu_cases import IS_SIMULATED, sized
from tests.support.training_cases import Case, check_same, check_settled, interpretable, latents
from upq.layers import MOST_STEPS, fake, grid_of
from upq.layers.two_levels import SMALLEST

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.kernels,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
#: Rows, columns and columns that share a scale.
SMALL = [(3, 48, 16), (3, 96, 48)]
LARGE = [
    (576, 576, 64),
    (64, 576, 576),
    (64, 1536, 1536),
    (33, 8192, 8192),
    (1024, 4096, 128),
]
SHAPES = [*SMALL, *sized(LARGE, [(5, 576, 576)])]


@pytest.mark.parametrize("bits", sized([1, 2, 4, 8], [2, 8]))
@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_computes_what_torch_defines(
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    kind: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
) -> None:
    case = Case.random(grid_of(kind, bits), shape, dtype, "cuda")
    case = interpretable(case) if IS_SIMULATED else case
    found = case.results()
    assert all(map(torch.equal, found, case.results())), "training repeats to the last bit"
    monkeypatch.setattr(fake, "_gpu_levels", lambda *_: None)
    check_same(found, case.results())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 48, 16), (64, 576, 16)])
def test_a_grid_of_two_levels_is_settled_and_rounded_in_triton(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    case = Case.random(grid_of("q2_k", 2), shape, dtype, "cuda")
    case = interpretable(case) if IS_SIMULATED else case
    found = case.results()
    monkeypatch.setattr(fake, "_gpu_levels", lambda *_: None)
    check_same(found, case.results())


def test_latents_of_two_levels_may_have_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(grid_of("q2_k", 2), (7, 192, 16), torch.float32, "cuda")
    case = interpretable(case) if IS_SIMULATED else case
    case = replace(case, log_scale=case.log_scale.T.contiguous().T)
    found = case.results()
    monkeypatch.setattr(fake, "_gpu_levels", lambda *_: None)
    check_same(found, case.results())


@pytest.mark.parametrize("columns", [*(192, 272, 576), *sized([4096, 8192], [])])
def test_two_levels_of_scales_are_settled_to_the_last_bit(columns: int) -> None:
    log_scale, zero = latents(columns, "cuda")
    check_settled(settle(log_scale, zero, MOST_STEPS, SMALLEST), log_scale, zero)
