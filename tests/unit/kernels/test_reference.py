"""The reference kernel means scale * (code - zero), and x @ W.T of that."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import reference
from kernels.packing import PackedWeight, pack
from tests.support.helpers import naive_weight


def random_packed(
    bits: int, rows: int, columns: int, groups: int, seed: int = 0, dtype: torch.dtype = torch.half
) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, groups, generator=generator).add(0.01).to(dtype)
    return PackedWeight(pack(codes, bits), scale, bits, (2**bits - 1) / 2)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [2, 4, 8])
@given(
    rows=st.integers(1, 4),
    group=st.integers(1, 4),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_dequantized_weights_are_those_of_a_loop_to_the_last_bit(
    bits: int, scale_dtype: torch.dtype, rows: int, group: int, groups: int, seed: int
) -> None:
    packed = random_packed(bits, rows, 4 * group * groups, groups, seed, scale_dtype)
    torch.testing.assert_close(
        reference.dequantize(packed), naive_weight(packed), atol=0.0, rtol=0.0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_in_half_precision_the_product_is_rounded_once(bits: int, dtype: torch.dtype) -> None:
    packed = random_packed(bits, 16, 64, 4)
    weight = reference.dequantize(packed, dtype)
    assert weight.dtype == dtype
    torch.testing.assert_close(weight, naive_weight(packed).to(dtype), atol=0.0, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 5), (0,)])
def test_matmul_is_the_product_with_the_transposed_weight(
    leading: tuple[int, ...], dtype: torch.dtype
) -> None:
    packed = random_packed(2, 6, 8, 2)
    inputs = torch.randn(*leading, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    outputs = kernels.matmul(inputs, packed)
    assert outputs.dtype == dtype
    assert outputs.shape == (*leading, 6)
    expected = (inputs.double() @ naive_weight(packed).double().T).float()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(outputs.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_group_may_have_a_zero_of_its_own(bits: int) -> None:
    packed = random_packed(bits, 5, 48, 3)
    zeros = torch.randint(0, 2**bits, (5, 3), dtype=torch.uint8)
    parts = [
        reference.dequantize(replace(packed, zero=float(zeros[row, group])))[
            row, 16 * group : 16 * group + 16
        ]
        for row in range(5)
        for group in range(3)
    ]
    own = replace(packed, zeros=zeros)
    assert torch.equal(reference.dequantize(own), torch.cat(parts).view(5, 48))
    assert own.size_bytes == packed.size_bytes + 15


def test_inputs_that_are_not_contiguous_give_the_same_product() -> None:
    packed = random_packed(4, 5, 16, 1)
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        reference.matmul(inputs.T, packed), reference.matmul(inputs.T.contiguous(), packed)
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("weights", [1, 16, 48, 80, 10_000])
def test_a_large_weight_is_decoded_in_parts_with_the_same_product(
    bits: int, weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = random_packed(bits, 5, 16, 2)
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.linear(inputs, reference.dequantize(packed))
    monkeypatch.setattr(reference, "CHUNK_WEIGHTS", weights)
    torch.testing.assert_close(reference.matmul(inputs, packed), whole)
