"""The C kernels on every instruction set of this processor: the product with rounded activations, to the bit the same
however it is cut. tests/unit/kernels/test_cpu_sanitized.py runs this file once more under the sanitizers.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest
import torch

import kernels
from kernels import reference
from kernels.cpu import build
from kernels.cpu import panels as cpu
from kernels.packing import PackedWeight
from tests.support.kernel_cases import random_inputs, random_packed
from tests.support.native_cases import rounded

EXTRA_FLAGS = tuple(os.environ.get("UPQ_TEST_CFLAGS", "").split())
HERE = list(build.INSTRUCTION_SETS).index(build.instruction_set())
#: AVX-VNNI is not part of AVX-512 VNNI; every other set includes those after it.
SETS = [
    name
    for name in list(build.INSTRUCTION_SETS)[HERE:]
    if name != "AVX-VNNI" or name == build.instruction_set()
]
#: (rows, columns, groups): ones, primes, unpadded and padded columns, groups of 32, 64, 128 and whole rows.
SHAPES = [
    (1, 32, 1),
    (16, 64, 2),
    (17, 36, 1),
    (7, 100, 1),
    (33, 192, 3),
    (64, 576, 9),
    (50, 256, 2),
    (31, 1536, 1),
]
TOKENS = (1, 2, 3, 4, 7, 16, 70)


def weight_on(name: str, packed: PackedWeight, threads: int = 2) -> cpu.CpuWeight:
    return cpu.CpuWeight(packed, cpu.bind(build.load(name, EXTRA_FLAGS)), name, threads)


def assert_is_the_product(
    outputs: torch.Tensor, inputs: torch.Tensor, packed: PackedWeight
) -> None:
    weight, seen = reference.dequantize(packed).double(), rounded(inputs.double(), cpu.SPAN)
    exact = seen @ weight.T
    # A value between two codes may be rounded either way; a span has at most a few such values.
    step = seen.abs().amax() / 127
    allowed = 1e-5 * (seen.abs() @ weight.abs().T) + step * weight.abs().amax() * 1e-2
    assert torch.isfinite(outputs).all()
    assert ((outputs.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", SETS)
def test_a_few_large_activations_do_not_drown_the_others(name: str) -> None:
    packed = random_packed(4, 64, 576, 9)
    inputs = random_inputs(5, 576, torch.float32)
    inputs[:, 64:128] *= 30
    exact = inputs @ reference.dequantize(packed).T
    error = (weight_on(name, packed)(inputs) - exact).norm() / exact.norm()
    assert error < 1e-3  # 0.005 where these spans are rounded to 8 bits only


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SETS)
def test_products_are_those_of_the_definition_with_rounded_activations(
    name: str, bits: int
) -> None:
    for rows, columns, groups in SHAPES:
        packed = random_packed(bits, rows, columns, groups)
        weight = weight_on(name, packed)
        for tokens in TOKENS:
            inputs = random_inputs(tokens, columns, torch.float32)
            assert_is_the_product(weight(inputs), inputs, packed)


@pytest.mark.parametrize("name", SETS)
def test_every_group_may_have_a_zero_of_its_own(name: str) -> None:
    for bits, groups in ((2, 3), (4, 1), (8, 6)):
        packed = random_packed(bits, 37, 192, groups)
        zeros = torch.randint(0, 2**bits, (37, groups), dtype=torch.uint8)
        packed = dataclasses.replace(packed, zeros=zeros)
        weight = weight_on(name, packed)
        assert weight.size_bytes > packed.size_bytes, "panels are padded to 16 rows"
        for tokens in (1, 5):
            inputs = random_inputs(tokens, 192, torch.float32)
            assert_is_the_product(weight(inputs), inputs, packed)


@pytest.mark.parametrize("name", SETS)
def test_rounding_the_activations_costs_little(name: str) -> None:
    packed = random_packed(2, 64, 576, 9)
    inputs = random_inputs(5, 576, torch.float32)
    exact = reference.matmul(inputs, packed)
    error = (weight_on(name, packed)(inputs) - exact).norm() / exact.norm()
    assert 0 < error < 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SETS)
def test_a_token_gets_the_same_bits_in_any_company_and_on_any_number_of_threads(
    name: str, bits: int
) -> None:
    packed = random_packed(bits, 83, 192, 3)
    inputs = random_inputs(70, 192, torch.float32)
    together = weight_on(name, packed)(inputs)
    for threads in (1, 2, 3):
        weight = weight_on(name, packed, threads)
        alone = torch.cat([weight(inputs[token : token + 1]) for token in range(70)])
        assert torch.equal(alone, together)
        assert torch.equal(weight(inputs[3:17]), together[3:17])


@pytest.mark.parametrize("name", SETS)
def test_zero_and_subnormal_values_are_values_like_others(name: str) -> None:
    packed = random_packed(4, 32, 128, 2)
    tiny = 2.0**-24  # the smallest scale that a 16-bit float holds
    scale = packed.scale.clone()
    scale[0], scale[1], scale[2, 0] = 0, tiny, 0
    packed = PackedWeight(packed.codes, scale, 4, packed.zero)
    inputs = random_inputs(3, 128, torch.float32)
    inputs[0] = 0
    inputs[1, :64] = 1e-30
    outputs = weight_on(name, packed)(inputs)
    assert_is_the_product(outputs, inputs, packed)
    assert (outputs[0] == 0).all()
    assert (outputs[:, 0] == 0).all()
    assert (outputs[1:, 1] != 0).all()


@pytest.mark.parametrize("name", SETS)
def test_values_that_are_not_numbers_stay_in_their_token(name: str) -> None:
    packed = random_packed(2, 16, 64, 1)
    inputs = random_inputs(4, 64, torch.float32)
    clean = weight_on(name, packed)(inputs)
    inputs[1, 5], inputs[2, 7] = float("nan"), float("inf")
    outputs = weight_on(name, packed)(inputs)
    assert torch.equal(outputs[[0, 3]], clean[[0, 3]])
    assert outputs[1:3].isnan().all(), "and it is seen there"


@pytest.mark.parametrize("name", SETS)
def test_shapes_types_and_strides_of_the_inputs_are_kept_or_dealt_with(name: str) -> None:
    packed = random_packed(2, 24, 64, 2)
    weight = weight_on(name, packed)
    inputs = random_inputs(30, 64, torch.float32)
    plain = weight(inputs)
    assert torch.equal(weight(inputs.view(5, 6, 64)), plain.view(5, 6, 24))
    assert torch.equal(weight(inputs.t().contiguous().t()), plain)
    assert torch.equal(weight(inputs.repeat(2, 1)[::2]), plain.repeat(2, 1)[::2])
    assert weight(inputs[:0]).shape == (0, 24)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(weight(inputs.to(dtype)), weight(inputs.to(dtype).float()).to(dtype))


def times_halves(library: Any, panels: cpu.Panels, inputs: torch.Tensor) -> torch.Tensor:
    values = torch.zeros(len(inputs), cpu.padded(panels.columns))
    values[:, : panels.columns] = inputs
    outputs = torch.empty(len(inputs), panels.rows)
    arguments: Any = (len(inputs), values.data_ptr(), 0, outputs.data_ptr(), 2)
    assert library.multiply(cpu.ctypes.byref(panels.struct), *arguments) == 0
    return outputs


@pytest.mark.parametrize("name", SETS)
def test_matrices_of_halves_multiply_without_rounding_and_to_the_same_bits_in_any_company(
    name: str,
) -> None:
    library = cpu.bind(build.load(name, EXTRA_FLAGS))
    for rows, columns in ((1, 32), (70, 96), (100, 40), (50, 300)):
        matrix = random_inputs(rows, columns, torch.float16, seed=3)
        panels = cpu.Panels(library, matrix)
        inputs = random_inputs(150, columns, torch.float32)
        alone = torch.cat([times_halves(library, panels, inputs[at : at + 1]) for at in range(150)])
        exact = inputs.double() @ matrix.double().T
        torch.testing.assert_close(alone.double(), exact, rtol=1e-5, atol=1e-4)
        for tokens in (3, 4, 9, 16, 23, 150):
            assert torch.equal(times_halves(library, panels, inputs[:tokens]), alone[:tokens])


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (random_packed(2, 8, 64, 4), "groups of 16 columns"),
        (
            PackedWeight(torch.zeros(8, 16, dtype=torch.uint8), torch.ones(8, 1), 2, 1.5),
            "scales of type torch.float32",
        ),
    ],
)
def test_a_weight_that_the_kernels_do_not_take_is_multiplied_by_torch(
    packed: PackedWeight, reason: str
) -> None:
    assert cpu.unsupported(packed).startswith(reason)
    prepared = kernels.prepare(packed)
    assert prepared.backend.startswith("torch")
    inputs = random_inputs(3, 64, torch.float32)
    assert torch.equal(prepared(inputs), reference.matmul(inputs, packed))


def test_prepare_takes_the_best_kernels_of_this_processor() -> None:
    prepared = kernels.prepare(random_packed(2, 8, 64, 1))
    assert prepared.backend == f"INT2 kernels, {build.instruction_set()}"
