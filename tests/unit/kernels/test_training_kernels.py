"""Fake quantization in C against its definition in torch."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch

from kernels.cpu import panels, training
from tests.support.training_cases import Case, check_same
from upq.layers import Grid, grid_of
from upq.layers.fake import fake_quantize

pytestmark = pytest.mark.skipif(panels.library() is None, reason="no C compiler here")


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "group"), [(7, 192, 64), (3, 48, 16), (64, 576, 576)])
def test_c_computes_what_torch_defines(
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    kind: str,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    group: int,
) -> None:
    _compare(monkeypatch, Case.random(grid_of(kind, bits), (rows, columns, group), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_it_does_with_two_levels_of_scales(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    _compare(monkeypatch, Case.random(grid_of("q2_k", 2), (7, 576, 16), dtype))


def _compare(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    assert training.is_usable(case.weight, case.log_scale, case.upstream.dtype)
    ours = case.results()
    monkeypatch.setattr(training, "is_usable", lambda *_: False)
    check_same(ours, case.results())


def test_threads_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, log_scale = torch.randn(37, 128), torch.randn(37, 2) * 0.1
    case = Case(Grid(2), weight, log_scale, None, torch.randn(37, 128))
    found = []
    for team in (training._team, ctypes.c_void_p):  # without torch's threads we have our own
        monkeypatch.setattr(training, "_team", team)
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found.append(case.results())
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_the_threads_are_those_of_torch_where_it_has_openmp() -> None:
    assert bool(training._team()) == torch.backends.openmp.is_available()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    weight = torch.zeros(1, 32)
    weight[0, 5] = torch.nan
    quantized = fake_quantize(weight, torch.zeros(1, 1), Grid(2), dtype)
    assert quantized.isnan().nonzero().tolist() == [[0, 5]]


@pytest.mark.parametrize(
    ("weight", "groups", "dtype"),
    [
        (torch.zeros(4, 40), 5, torch.float32),  # groups of 8: less than a vector
        (torch.zeros(64, 4).T, 1, torch.float32),  # not contiguous
        (torch.zeros(4, 64), 1, torch.float16),
        (torch.zeros(0, 64), 1, torch.float32),
    ],
)
def test_what_c_does_not_take(weight: torch.Tensor, groups: int, dtype: torch.dtype) -> None:
    assert not training.is_usable(weight, torch.zeros(len(weight), groups), dtype)


@pytest.mark.parametrize("kind", ["odd", "integer_zero", "signed"])
def test_scales_in_another_order_in_memory_are_the_same_scales(kind: str) -> None:
    """Solvers leave scales as they came, group after group."""
    case = Case.random(grid_of(kind, 4), (7, 192, 64), torch.float32)
    turned = None if case.zero is None else case.zero.T.contiguous().T
    other = replace(case, log_scale=case.log_scale.T.contiguous().T, zero=turned)
    assert not other.log_scale.is_contiguous()
    for one, two in zip(case.results(), other.results(), strict=True):
        assert torch.equal(one, two)
