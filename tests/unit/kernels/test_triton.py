"""The Triton kernels against their definition, in Triton's interpreter; on a GPU tests/gpu/test_gpu_kernels.py
does the same with compiled ones."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.gpu import operators, products, tuning
from kernels.gpu.operators import TritonWeight, arrange, packed_dequantize, packed_matmul
from kernels.packing import PackedWeight, unpack
from kernels.transform import Transform
from tests.support.kernel_cases import (
    NARROW,
    NESTED,
    SHAPES,
    check_product,
    random_inputs,
    random_nested,
    random_packed,
    random_signed,
)
from tests.unit.kernels.test_transform import full_transform

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
HALF = [torch.float16, torch.bfloat16]
#: (bits, zero) that the assembly subtracts: middles, codes, and none.
ZEROS = [(2, 0.0), (2, 1.5), (2, 2.0), (4, 7.5), (4, 8.0)]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("shape", SHAPES + NARROW)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_are_those_of_the_definition(bits: int, shape: tuple[int, int, int]) -> None:
    packed = random_packed(bits, *shape)
    prepared = TritonWeight(packed)
    for rows, dtype in ((1, torch.float16), (5, torch.bfloat16)):
        check_product(prepared, packed, random_inputs(rows, shape[1], dtype))


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 70])
def test_every_number_of_rows_gives_the_product(rows: int) -> None:
    packed = random_packed(2, 67, 192, 3)
    check_product(TritonWeight(packed), packed, random_inputs(rows, 192, torch.float16))


@settings(max_examples=6)
@given(
    bits=st.sampled_from([2, 4, 8]),
    outputs=st.integers(1, 80),
    group=st.sampled_from([16, 32, 48, 64, 128]),
    groups=st.integers(1, 4),
    rows=st.integers(1, 20),
    dtype=st.sampled_from(HALF),
)
def test_any_shape_gives_the_product(
    bits: int, outputs: int, group: int, groups: int, rows: int, dtype: torch.dtype
) -> None:
    packed = random_packed(bits, outputs, group * groups, groups)
    check_product(TritonWeight(packed), packed, random_inputs(rows, group * groups, dtype))


@pytest.mark.parametrize(
    ("columns", "config"),
    [(columns, one) for columns, many in tuning.CANDIDATES.items() for one in many],
)
def test_every_configuration_gives_the_product(
    columns: int, config: tuning.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "choose", lambda *given: config)
    packed = random_packed(2, 70, 320, 5)
    check_product(TritonWeight(packed), packed, random_inputs(columns, 320, torch.float16))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_without_a_remainder_are_read_without_masks(bits: int) -> None:
    inputs = operators.block_inputs(bits) * tuning.CANDIDATES[8][0].slices
    packed = random_packed(bits, 64, inputs, inputs // 32)
    check_product(TritonWeight(packed), packed, random_inputs(3, inputs, torch.float16))


@pytest.mark.parametrize("shape", SHAPES + NARROW)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_group_may_have_a_zero_of_its_own(bits: int, shape: tuple[int, int, int]) -> None:
    packed = with_zeros(random_packed(bits, *shape))
    plain = TritonWeight(replace(packed, zeros=None))
    assert TritonWeight(packed).size_bytes > plain.size_bytes
    check_weight(packed)


def with_zeros(packed: PackedWeight) -> PackedWeight:
    generator = torch.Generator().manual_seed(2)
    zeros = torch.randint(0, 2**packed.bits, packed.scale.shape, generator=generator)
    return replace(packed, zeros=zeros.to(torch.uint8))


@pytest.mark.parametrize("shape", [*SHAPES[3:6], NARROW[0]])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_may_be_a_code_and_scales_have_any_sign(
    bits: int, shape: tuple[int, int, int]
) -> None:
    check_weight(random_signed(bits, *shape))


@pytest.mark.parametrize("shape", NESTED)
def test_scales_may_have_two_levels(shape: tuple[int, int]) -> None:
    check_weight(random_nested(*shape))


@pytest.mark.parametrize("dtype", HALF)
def test_two_levels_without_a_remainder_are_read_without_masks(dtype: torch.dtype) -> None:
    packed = random_nested(64, operators.block_inputs(2) * tuning.CANDIDATES[8][0].slices)
    check_product(TritonWeight(packed), packed, random_inputs(3, packed.shape[1], dtype))


def check_weight(packed: PackedWeight) -> None:
    """The products and the decoded weight."""
    prepared = TritonWeight(packed)
    for rows, dtype in ((1, torch.float16), (11, torch.bfloat16)):
        check_product(prepared, packed, random_inputs(rows, packed.shape[1], dtype))
    for dtype in (torch.float16, torch.float32):
        expected = reference.dequantize(packed).to(dtype)
        torch.testing.assert_close(prepared.dequantize(dtype), expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("kind", ["two levels", "signed"])
def test_joined_weights_give_the_outputs_of_each(kind: str) -> None:
    packed = [
        random_nested(rows, 192, seed)
        if kind == "two levels"
        else random_signed(4, rows, 192, 3, seed)
        for seed, rows in enumerate((128, 64, 70))
    ]
    weights = [TritonWeight(one) for one in packed]
    inputs = random_inputs(3, 192, torch.float16)
    alone = torch.cat([weight(inputs) for weight in weights], 1)
    joined = operators.join(weights)
    assert joined
    assert torch.equal(joined(inputs), alone)
    assert torch.equal(torch.cat([weight(inputs) for weight in weights], 1), alone)
    assert operators.join([weights[0], TritonWeight(random_packed(2, 64, 192, 3))]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transform_surrounds_the_product_of_the_kernels(dtype: torch.dtype) -> None:
    packed = replace(random_packed(2, 96, 576, 9), transform=full_transform(96, 576))
    matrix = TritonWeight(replace(packed, transform=None))
    assert packed.transform
    prepared = reference.TransformedWeight(matrix, packed.transform)
    assert prepared.size_bytes == matrix.size_bytes + packed.transform.size_bytes
    inputs = random_inputs(3, 576, dtype)
    expected = inputs.double() @ reference.weight_of(packed).double().T
    error = (prepared(inputs).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 2e-2)
    assert prepared(inputs).dtype == dtype


def test_inputs_of_any_layout_and_rank_are_taken() -> None:
    packed = random_packed(4, 20, 64, 2)
    prepared = TritonWeight(packed)
    wide = random_inputs(6, 128, torch.float16)
    expected = prepared(wide[:, ::2].contiguous())
    assert torch.equal(prepared(wide[:, ::2]), expected)
    assert torch.equal(prepared(wide[:, ::2].view(2, 3, 64)), expected.view(2, 3, 20))
    assert torch.equal(prepared(wide[:, ::2].T.contiguous().T), expected)
    assert prepared(wide[:0, ::2]).shape == (0, 20)
    assert torch.equal(prepared(wide[0, ::2]), expected[0])


def test_float32_inputs_give_the_product_in_float32() -> None:
    packed = random_packed(2, 30, 96, 3)
    check_product(TritonWeight(packed), packed, random_inputs(4, 96, torch.float32))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
def test_zero_and_subnormal_scales_give_the_product(scale_dtype: torch.dtype) -> None:
    packed = random_packed(2, 8, 64, 2)
    scale = packed.scale.clone()
    scale[0], scale[1], scale[2] = 0.0, 2.0**-24, 2.0**-15
    packed = replace(packed, scale=scale.to(scale_dtype))
    prepared = TritonWeight(packed)
    check_product(prepared, packed, random_inputs(2, 64, torch.bfloat16))
    assert not prepared(random_inputs(2, 64, torch.float16))[:, 0].any()


@pytest.mark.parametrize("shape", SHAPES + NARROW)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_decoded_weights_are_those_of_the_definition(
    bits: int, shape: tuple[int, int, int]
) -> None:
    packed = random_packed(bits, *shape)
    prepared = TritonWeight(packed)
    for dtype in (torch.float16, torch.float32):
        expected = reference.dequantize(packed).to(dtype)
        torch.testing.assert_close(prepared.dequantize(dtype), expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_field_of_the_words_is_sixteen_consecutive_codes(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "ROWS_AT_A_TIME", 2)
    packed = random_packed(bits, 5, 96, 1)
    words = arrange(packed.codes, bits)
    codes = unpack(packed.codes, bits)
    for position in (0, 1, 15, 16, 37, 95):
        block, inside = divmod(position, 256 // bits)
        field, word = divmod(inside, 16)
        found = (words[block, :5, word].int() >> (bits * field)) & (2**bits - 1)
        assert torch.equal(found, codes[:, position].int())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("bits", "zero"), ZEROS)
def test_the_constants_of_the_assembly_decode_every_word(
    bits: int, zero: float, dtype: torch.dtype
) -> None:
    name = {torch.float16: products.tl.float16, torch.bfloat16: products.tl.bfloat16}
    words = torch.arange(2**16)
    for field in range(16 // bits):
        shift: Any = products.field_shift(field, bits, name[dtype])
        mask, magic, subtrahend = products.field_constants(field, bits, name[dtype], zero)
        moved = words >> shift if shift >= 0 else words << -shift
        lifted = ((moved & mask) | magic).to(torch.int16).view(dtype)
        found = lifted - torch.tensor(subtrahend, dtype=torch.int16).view(dtype)
        expected = ((words >> (bits * field)) & (2**bits - 1)) - zero
        torch.testing.assert_close(found.float(), expected.float(), atol=0.0, rtol=0.0)


def test_torch_knows_the_operators() -> None:
    prepared = TritonWeight(random_packed(2, 20, 64, 2))
    inputs = random_inputs(2, 64, torch.float16)
    words, scale = prepared.parts.values()
    zeros = torch.ones(scale.shape, dtype=torch.uint8)
    given = (inputs, words, scale, 20, 2, 32, 1.5, zeros)
    torch.library.opcheck(packed_matmul, given, test_utils=("test_schema", "test_faketensor"))
    given = (words, scale, 20, 64, 2, torch.float16, 1.5, zeros)
    torch.library.opcheck(packed_dequantize, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "change",
    [
        {"zero": 1.0},
        {"bits": 4, "steps": torch.zeros(4, 2, dtype=torch.uint8)},
        {"steps": torch.zeros(4, 2, dtype=torch.uint8)},
        {"bits": 3},
        {"codes": torch.zeros(4, 16, dtype=torch.int32)},
        {"scale": torch.zeros(4, 3, dtype=torch.float16)},
        {"scale": torch.zeros(3, 2, dtype=torch.float16)},
        {"scale": torch.zeros(4, 2, dtype=torch.float64)},
        {"zeros": torch.zeros(4, 1, dtype=torch.uint8)},
        {"transform": Transform(block_in=64)},
    ],
)
def test_what_the_kernels_do_not_compute_is_refused(change: dict) -> None:
    packed = PackedWeight(
        torch.zeros(4, 16, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.float16), 2, 1.5
    )
    TritonWeight(packed)
    with pytest.raises(ValueError, match=r"not|no "):
        TritonWeight(replace(packed, **change))


def test_tuned_configurations_survive_a_restart_and_a_damaged_file_does_not_hurt(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "triton.json"
    known = {"4096x4096": tuning.Config(16, 8, 1, 4)}
    tuning._remember(path, known)
    assert tuning._remembered.__wrapped__(path) == known
    assert [one.name for one in path.parent.iterdir()] == ["triton.json"]
    for damage in ("", "[1]", '{"4096x4096": 3}', '{"4096x4096": [1]}', "\xff"):
        path.write_text(damage, encoding="latin-1")
        assert tuning._remembered.__wrapped__(path) == {}


def test_the_kernels_compile_for_an_h100_within_their_budget_of_instructions() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_triton"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = json.loads(found.stdout)
    for name, one in kernels["between"].items():
        assert one["spilled_bytes"] == 0 or "_attention" in name, name
        assert one["shared_bytes"] <= 48 * 1024, f"{name}: more than every GPU has"
    for name, one in kernels["products"].items():
        assert one["mma"] > 0, name
        assert one["spilled_bytes"] == 0, name
        assert one["decoding_per_weight"] <= one["budget"], name
    for name, one in [*kernels["training"].items(), *kernels["norms"].items()]:
        assert one["spilled_bytes"] == 0, name
        assert one["shared_bytes"] <= 48 * 1024, name
    for name, one in kernels["training"].items():
        assert one["exact_divisions"] > 0 or "backward" in name
        assert one["other_divisions"] == 0, name
