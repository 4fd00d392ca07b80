"""The packed layout, version 1: against a naive loop, as a property, and byte by byte."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.packing import PackedWeight, pack, unpack


def naive_pack(codes: torch.Tensor, bits: int) -> list[list[int]]:
    per_byte = 8 // bits
    return [
        [
            sum(code << (bits * place) for place, code in enumerate(row[start : start + per_byte]))
            for start in range(0, len(row), per_byte)
        ]
        for row in codes.tolist()
    ]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(rows=st.integers(0, 5), row_bytes=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_unpack_of_pack_is_the_identity_and_bytes_are_those_of_a_loop(
    bits: int, rows: int, row_bytes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, row_bytes * 8 // bits), generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == naive_pack(codes, bits)
    assert torch.equal(unpack(packed, bits), codes.to(torch.uint8))


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (2, [[0, 1, 2, 3, 3, 0, 0, 2]], [[0b11_10_01_00, 0b10_00_00_11]]),
        (4, [[1, 15, 0, 8], [7, 7, 10, 5]], [[0xF1, 0x80], [0x77, 0x5A]]),
    ],
)
def test_layout_version_1_puts_the_first_code_in_the_lowest_bits(
    bits: int, codes: list[list[int]], expected: list[list[int]]
) -> None:
    assert pack(torch.tensor(codes), bits).tolist() == expected
    assert unpack(torch.tensor(expected, dtype=torch.uint8), bits).tolist() == codes


@pytest.mark.parametrize(("bits", "columns"), [(2, 5), (2, 2), (4, 3), (4, 1)])
def test_codes_that_do_not_fill_bytes_are_refused(bits: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"{columns} codes of {bits} bits"):
        pack(torch.zeros(2, columns, dtype=torch.uint8), bits)


def test_a_column_slice_packs_like_its_contiguous_copy() -> None:
    codes = torch.arange(32).reshape(4, 8).remainder(4)[:, ::2]
    assert torch.equal(pack(codes, 2), pack(codes.contiguous(), 2))


def test_the_shape_and_size_of_a_packed_weight_follow_from_its_codes_and_scales() -> None:
    packed = PackedWeight(
        torch.zeros(3, 10, dtype=torch.uint8), torch.zeros(3, 5, dtype=torch.float16), 2, 1.5
    )
    assert packed.shape == (3, 40)
    assert packed.size_bytes == 3 * 10 + 3 * 5 * 2
