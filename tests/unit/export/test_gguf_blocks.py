"""Every block that we write decodes, by gguf-py or by the type's definition, to exactly what the codes stand for."""

import gguf
import numpy
import pytest
import torch

from kernels.packing import PackedWeight, nested_block, pack
from kernels.reference import dequantize
from upq.errors import UserError
from upq.export.gguf_blocks import encoded
from upq.export.gguf_kinds import (
    BF16,
    F16,
    F32,
    KINDS,
    Q2_0,
    Q2_K,
    Q4_0,
    Q5_0,
    Q8_0,
    Kind,
    kind_of_packed,
    kind_of_plain,
)
from upq.export.gguf_read import Stored

ROWS, COLUMNS = 12, 512
#: Scales of a row each: ordinary, none, the least float16, odd and below the normal ones, the largest and its opposite.
EXTREMES = [0.01, -0.02, 0.0, -0.0, 2.0**-24, 3 * 2.0**-24, -(2.0**-15), 65504.0, -65504.0]
#: Case -> (bits, zero, group, the type that it leaves in). Scales of grids with a half zero are positive.
PLAIN_GRIDS: dict[str, tuple[int, float, int, Kind]] = {
    "INT4 signed, groups of 32": (4, 8.0, 32, Q4_0),
    "INT4 signed, groups of 64": (4, 8.0, 64, Q4_0),
    "INT4 signed, groups of 128": (4, 8.0, 128, Q4_0),
    "INT4 signed, a group a row": (4, 8.0, COLUMNS, Q4_0),
    "INT4 odd": (4, 7.5, 64, Q5_0),
    "INT2 signed, groups of 64": (2, 2.0, 64, Q2_0),
    "INT2 signed, groups of 128": (2, 2.0, 128, Q2_0),
    "INT2 signed, groups of 32": (2, 2.0, 32, Q4_0),
    "INT2 odd": (2, 1.5, 64, Q4_0),
    "8 bits around 128": (8, 128.0, COLUMNS, Q8_0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_grid(bits: int, zero: float, group: int) -> PackedWeight:
    """Random codes at ordinary and extreme scales; the last rows have one code each."""
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), generator=generator())
    codes[-1], codes[-2], codes[-3] = 0, 2**bits - 1, 2 ** (bits - 1)
    scale = torch.randn(ROWS, COLUMNS // group, generator=generator(1)).half() / 64
    for row, value in enumerate(EXTREMES):
        scale[row, 0] = value
    if not float(zero).is_integer():
        scale = (scale.float().abs() / 2).half() * 2  # half of it has to be a float16
    return PackedWeight(pack(codes, bits), scale, bits, zero)


def own_zeros(bits: int, group: int = 64) -> PackedWeight:
    packed = plain_grid(bits, 2.0 ** (bits - 1), group)
    zeros = torch.randint(0, 2**bits, packed.scale.shape, generator=generator(2))
    zeros[0], zeros[1] = 0, 2**bits - 1
    scale = packed.scale.abs()
    return PackedWeight(packed.codes, scale, bits, 0.0, zeros=zeros.to(torch.uint8))


def two_levels(columns: int = COLUMNS) -> PackedWeight:
    """Random codes and steps, the largest steps in the first row, none of the minimum in the second."""
    codes = torch.randint(0, 4, (ROWS, columns), generator=generator())
    blocks = columns // nested_block(columns)
    scale = torch.rand(ROWS, blocks, generator=generator(1)).half() / 64
    minimum = torch.rand(ROWS, blocks, generator=generator(2)).half() / 64
    for row, value in enumerate([0.01, 0.01, 0.0, 2.0**-24, 3 * 2.0**-24, 2.0**-14, 600.0]):
        scale[row], minimum[-1 - row] = value, value
    steps = torch.randint(0, 256, (ROWS, columns // 16), generator=generator(3))
    steps[0], steps[1] = 255, 15
    return PackedWeight(pack(codes, 2), scale, 2, 0.0, minimum=minimum, steps=steps.to(torch.uint8))


def decoded(packed: PackedWeight | torch.Tensor, kind: Kind) -> numpy.ndarray:
    data = encoded(packed, kind)
    assert data.dtype == numpy.uint8
    assert data.nbytes == kind.size_bytes(packed.shape)
    if kind != Q2_0:
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    return Stored(kind, tuple(packed.shape), data).decoded()


@pytest.mark.parametrize("case", PLAIN_GRIDS)
def test_a_grid_leaves_exactly(case: str) -> None:
    bits, zero, group, kind = PLAIN_GRIDS[case]
    packed = plain_grid(bits, zero, group)
    assert kind_of_packed(packed) == (kind, "")
    numpy.testing.assert_array_equal(decoded(packed, kind), dequantize(packed).numpy())


@pytest.mark.parametrize(("bits", "kind"), [(4, Q5_0), (2, Q4_0)])
def test_zeros_of_groups_leave_exactly(bits: int, kind: Kind) -> None:
    packed = own_zeros(bits)
    assert kind_of_packed(packed) == (kind, "")
    numpy.testing.assert_array_equal(decoded(packed, kind), dequantize(packed).numpy())


def test_two_levels_of_scales_leave_exactly() -> None:
    packed = two_levels()
    assert kind_of_packed(packed) == (Q2_K, "")
    numpy.testing.assert_array_equal(decoded(packed, Q2_K), dequantize(packed).numpy())


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (two_levels(576), "blocks of 192"),
        (plain_grid(8, 127.5, COLUMNS), "whole numbers from -255 to 255"),
        (plain_grid(4, 8.0, 16), "32 does not divide its groups of 16"),
    ],
    ids=["blocks of 192", "8 bits around 127.5", "groups of 16"],
)
def test_what_no_type_holds_is_rounded_with_a_reason(packed: PackedWeight, reason: str) -> None:
    small = PackedWeight(**{**vars(packed), "scale": packed.scale.clamp(-1, 1)})
    kind, found = kind_of_packed(small)
    assert kind == F16
    assert reason in found
    numpy.testing.assert_array_equal(decoded(small, kind), dequantize(small).half().float())


def test_a_scale_whose_half_is_no_float16_is_rounded() -> None:
    packed = PackedWeight(
        pack(torch.zeros(1, 32), 4), torch.tensor([[3 * 2.0**-24]]).half(), 4, 7.5
    )
    kind, reason = kind_of_packed(packed)
    assert (kind, reason) == (F16, "half of its smallest scale is no float16")


def test_a_weight_beyond_float16_is_refused() -> None:
    packed = plain_grid(8, 127.5, COLUMNS)
    with pytest.raises(UserError, match="beyond float16") as caught:
        encoded(packed, F16)
    assert caught.value.code == "cannot_export"


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.randn(4, 32).half(), F16),
        (torch.randn(4, 32).bfloat16() * 2.0**90, BF16),
        (torch.randn(4, 32), F32),
        (torch.randn(32).half(), F32),
        (torch.randn(32).bfloat16(), F32),
    ],
    ids=str,
)
def test_a_plain_tensor_leaves_exactly(tensor: torch.Tensor, kind: Kind) -> None:
    assert kind_of_plain(tensor) == kind
    numpy.testing.assert_array_equal(decoded(tensor, kind).reshape(tensor.shape), tensor.float())


def test_rows_are_encoded_a_few_at_a_time_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = plain_grid(4, 8.0, 32)
    whole = encoded(packed, Q4_0)
    monkeypatch.setattr("upq.export.gguf_blocks.CHUNK_WEIGHTS", 5 * COLUMNS)
    numpy.testing.assert_array_equal(encoded(packed, Q4_0), whole)


def test_the_sizes_are_those_of_gguf_py() -> None:
    for number, kind in KINDS.items():
        if kind != Q2_0:
            known = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
            assert known == (kind.block, kind.block_bytes)


def test_two_bits_are_read_by_their_definition() -> None:
    block = numpy.zeros((1, 18), numpy.uint8)
    block[0, :2] = numpy.array([0.5], "<f2").view(numpy.uint8)
    block[0, 2], block[0, 17] = 0b11_10_01_00, 0b01_01_01_11
    values = Stored(Q2_0, (1, 64), block).decoded()[0]
    assert values[:4].tolist() == [-0.5, 0.0, 0.5, 1.0]
    assert values[60:].tolist() == [1.0, 0.0, 0.0, 0.0]
