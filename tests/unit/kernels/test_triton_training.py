"""Fake quantization in Triton against its definition, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.cpu import training
from kernels.gpu.training import DTYPES, TILE, Levels, are_plain, settle
from tests.support.training_cases import Case, check_same, check_settled, interpretable, latents
from upq.layers import MOST_STEPS, Grid, TwoLevelGrid, fake, grid_of
from upq.layers.fake import fake_quantize
from upq.layers.grid import SMALLEST_SCALE
from upq.layers.two_levels import SMALLEST

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
#: Rows, columns and columns that share a scale: usual groups, no power of two, more than a program takes at once.
SHAPES = [(7, 192, 64), (3, 48, 16), (3, 96, 48), (5, 576, 576), (2, TILE + 500, TILE + 500)]

ROOT = Path(__file__).resolve().parents[3]
#: Prints what becomes of the kernel for blocks of 1, 12 and 16 groups on an H100, as JSON.
COMPILES = """
import json
from kernels.gpu import training
from tests.support.compile_triton import _float_facts

given = {"MOST": 15, "MANY": training.SETTLED_BLOCKS, "PLAIN": False}
types = {"blocks": "i32", "smallest": "fp32", "largest": "fp32"}
widths = [{"GROUPS": groups, "WIDTH": width} for groups, width in ((1, 1), (12, 16), (16, 16))]
print(json.dumps([_float_facts(training.settle_kernel, given | one, types, 4) for one in widths]))
"""


def levels_of(
    _weight: torch.Tensor,
    log_scale: torch.Tensor,
    zero: torch.Tensor | None,
    grid: Grid,
    _dtype: torch.dtype,
) -> Levels:
    if isinstance(grid, TwoLevelGrid) and zero is not None:
        settled = settle(log_scale, zero, MOST_STEPS, SMALLEST)
        return Levels(*settled, grid.levels, SMALLEST_SCALE, is_settled=True)
    return Levels(log_scale, zero, grid.levels, SMALLEST_SCALE)


def both(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the kernels with torch."""
    monkeypatch.setattr(training, "is_usable", lambda *_: False)
    expected = case.results()
    monkeypatch.setattr(fake, "_gpu_levels", levels_of)
    check_same(case.results(), expected)


@pytest.mark.parametrize("bits", [2, 4])
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
    case = Case.random(grid_of(kind, bits), shape, dtype)
    both(interpretable(case), monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 192, 16), (3, 48, 16), (2, TILE, 16)])
def test_a_grid_of_two_levels_is_settled_and_rounded_in_triton(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    both(interpretable(Case.random(grid_of("q2_k", 2), shape, dtype)), monkeypatch)


@pytest.mark.parametrize("columns", [16, 192, 256, 272, 576, 1536])
def test_two_levels_of_scales_are_settled_to_the_last_bit(columns: int) -> None:
    log_scale, zero = latents(columns)
    assert are_plain(log_scale, zero)
    check_settled(settle(log_scale, zero, MOST_STEPS, SMALLEST), log_scale, zero)


def test_scales_that_are_no_numbers_or_infinite_are_settled_as_by_torch() -> None:
    log_scale, zero = latents(192)
    log_scale[0, 3], log_scale[1, 5], log_scale[2, 7] = torch.nan, torch.inf, -torch.inf
    zero[3, 0], zero[4, 2], zero[5, 4] = torch.nan, torch.inf, -torch.inf
    with np.errstate(all="ignore"):
        found = settle(log_scale, zero, MOST_STEPS, SMALLEST)
    check_settled(found, log_scale, zero)
    assert found[0].isnan().any(1).tolist() == [True] + 6 * [False]
    assert found[1].isnan().any(1).tolist() == [True, False, False, True] + 3 * [False]


def test_two_levels_are_settled_by_a_kernel_that_compiles_without_spilling() -> None:
    found = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for one in json.loads(found.stdout):
        assert one["spilled_bytes"] == 0
        assert one["exact_divisions"] > 0
        assert one["other_divisions"] == 0


@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
def test_weights_on_borders_take_the_level_of_torch(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    steps = torch.arange(-64, 64).view(2, 64) / 8
    zeros = {"odd": None, "integer_zero": [[0.5], [1.5]], "signed": [[1.0], [2.0]]}[kind]
    zero = None if zeros is None else torch.tensor(zeros)  # ties of zeros as well
    for log_scale in (torch.zeros(2, 1), torch.full((2, 1), -20.0)):  # one, and the smallest
        weight = steps * log_scale.exp().clamp_min(SMALLEST_SCALE)
        case = Case(grid_of(kind, 2), weight, log_scale, zero, torch.ones(2, 64))
        both(case, monkeypatch)


def test_not_a_number_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "_gpu_levels", levels_of)
    weight = torch.zeros(1, 32)
    weight[0, 5] = torch.nan
    for dtype in DTYPES:
        quantized = fake_quantize(weight, torch.zeros(1, 1), Grid(2), dtype)
        assert quantized.isnan().nonzero().tolist() == [[0, 5]]


def test_a_gradient_of_any_layout_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.random(Grid(2), (16, 32, 16), torch.float32)
    both(interpretable(replace(case, upstream=case.upstream.T.contiguous().T)), monkeypatch)


@pytest.mark.parametrize(
    ("weight", "log_scale", "dtype"),
    [
        (torch.zeros(64, 4).T, torch.zeros(4, 1), torch.float32),  # not contiguous
        (torch.zeros(4, 64), torch.zeros(1, 4).T.expand(4, 2), torch.float32),
        (torch.zeros(4, 64), torch.zeros(4, 1), torch.float64),
        (torch.zeros(4, 64).half(), torch.zeros(4, 1), torch.float32),
        (torch.zeros(0, 64), torch.zeros(0, 1), torch.float32),
    ],
)
def test_what_the_kernels_do_not_take(
    weight: torch.Tensor, log_scale: torch.Tensor, dtype: torch.dtype
) -> None:
    assert Levels(torch.zeros(4, 1), None, 4, SMALLEST_SCALE).fit(
        torch.zeros(4, 64), torch.bfloat16
    )
    assert not Levels(log_scale, None, 4, SMALLEST_SCALE).fit(weight, dtype)
