"""The grids of GGUF's types in C: zeros that are codes with scales of any sign, and scales of two levels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import kernels
from kernels import reference
from kernels.cpu import build
from kernels.cpu import panels as cpu
from kernels.packing import PackedWeight
from tests.support.kernel_cases import (
    NESTED,
    magnitudes,
    random_inputs,
    random_nested,
    random_packed,
    random_signed,
)
from tests.support.native_cases import around_layer, rounded
from tests.unit.kernels.test_cpu_kernels import SETS, TOKENS, weight_on


def between_codes(tokens: int, columns: int) -> torch.Tensor:
    """Inputs that are rounded in one way only: multiples of each span's scale, of a coarse first span of several 254ths
    of it.
    """
    generator = torch.Generator().manual_seed(tokens)
    spans = cpu.padded(columns) // cpu.SPAN
    steps = torch.randint(-126, 127, (tokens, spans, cpu.SPAN), generator=generator).float()
    scale = 2.0 ** torch.randint(0, 4, (tokens, spans, 1), generator=generator)
    if spans > 3:
        scale[:, 0] = 64
        steps[:, 0] += torch.randint(-100, 101, (tokens, cpu.SPAN), generator=generator) / 254
    steps[:, :, 0] = 127
    return (steps * scale).view(tokens, -1)[:, :columns]


def assert_is_the_product(
    outputs: torch.Tensor, inputs: torch.Tensor, packed: PackedWeight
) -> None:
    seen = rounded(inputs.double(), cpu.SPAN)
    exact = seen @ reference.dequantize(packed).double().T
    allowed = 1e-6 * (seen.abs() @ magnitudes(packed).T)
    assert torch.isfinite(outputs).all()
    assert ((outputs.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", SETS)
def test_scales_of_two_levels_give_the_products_of_the_definition(name: str) -> None:
    for rows, columns in NESTED:
        packed = random_nested(rows, columns)
        weight = weight_on(name, packed)
        for tokens in TOKENS:
            inputs = between_codes(tokens, columns)
            assert_is_the_product(weight(inputs), inputs, packed)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", SETS)
def test_a_zero_may_be_a_code_and_scales_have_any_sign(name: str, bits: int) -> None:
    for rows, columns, groups in ((17, 36, 1), (33, 192, 6), (50, 256, 2)):
        packed = random_signed(bits, rows, columns, groups)
        weight = weight_on(name, packed)
        for tokens in TOKENS:
            inputs = between_codes(tokens, columns)
            assert_is_the_product(weight(inputs), inputs, packed)


@pytest.mark.parametrize("name", SETS)
def test_zero_and_the_smallest_steps_and_scales_are_values_like_others(name: str) -> None:
    packed = random_nested(8, 512)
    outputs = weight_on(name, packed)(between_codes(4, 512))
    assert (outputs[:, 1] == 0).all(), "no steps: every weight is zero"
    assert (outputs[:, [0, *range(2, 8)]] != 0).all()


@pytest.mark.parametrize(
    "columns", [192, 48, 592]
)  # whole spans; blocks of one and a half; of half a span
@pytest.mark.parametrize("name", SETS)
def test_a_token_gets_the_same_bits_in_any_company_and_on_any_number_of_threads(
    name: str, columns: int
) -> None:
    packed = random_nested(83, columns)
    inputs = random_inputs(23, columns, torch.float32)
    inputs[::5, :32] *= 30  # some tokens have a fine span there
    together = weight_on(name, packed)(inputs)
    for threads in (1, 2, 3):
        weight = weight_on(name, packed, threads)
        alone = torch.cat([weight(inputs[token : token + 1]) for token in range(23)])
        assert torch.equal(alone, together)
        assert torch.equal(weight(inputs[3:17]), together[3:17])


@pytest.mark.parametrize("kind", ["input", "both", "lattice"])
@pytest.mark.parametrize("name", SETS)
def test_a_transform_surrounds_scales_of_two_levels(name: str, kind: str) -> None:
    for rows, columns in ((576, 576), (48, 64), (20, 112)):
        around = around_layer(kind, 0, rows, columns)
        assert around
        packed = dataclasses.replace(random_nested(rows, columns), transform=around)
        inputs = random_inputs(9, columns, torch.float32)
        values, added = around.inputs(inputs)
        product = rounded(values, cpu.SPAN).double() @ reference.dequantize(packed).double().T
        exact = around.outputs(product, None if added is None else added.double())
        error = (weight_on(name, packed)(inputs) - exact).norm(dim=-1) / exact.norm(dim=-1)
        # A value just between two of its 255 may be rounded to the other one; the rest is exact.
        assert error.median() < 1e-5
        assert error.max() < 5e-3


@pytest.mark.parametrize("name", SETS)
def test_values_that_are_not_numbers_stay_in_their_token(name: str) -> None:
    packed = random_nested(16, 64)
    weight, inputs = weight_on(name, packed), random_inputs(4, 64, torch.float32)
    clean = weight(inputs)
    inputs[1, 5], inputs[2, 7] = float("nan"), float("inf")
    outputs = weight(inputs)
    assert torch.equal(outputs[[0, 3]], clean[[0, 3]])
    assert outputs[1:3].isnan().all(), "and it is seen there"


def test_prepare_takes_the_best_kernels_of_this_processor() -> None:
    prepared = kernels.prepare(random_nested(8, 64))
    assert prepared.backend == f"INT2 kernels, {build.instruction_set()}"


def test_two_levels_of_other_bits_are_multiplied_by_torch() -> None:
    nested, codes = random_nested(8, 64), random_packed(4, 8, 64, 1).codes
    packed = dataclasses.replace(nested, codes=codes, bits=4)
    assert cpu.unsupported(packed) == "4 bits with scales of two levels"
    inputs = random_inputs(3, 64, torch.float32)
    assert torch.equal(kernels.prepare(packed)(inputs), reference.matmul(inputs, packed))
