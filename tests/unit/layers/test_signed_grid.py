"""The signed grid: exact in stored form, exact in other programs' formulas, and its sign chosen by the error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.packing import unpack
from kernels.reference import dequantize
from tests.support.grids import round_trip
from upq.layers import INT8, Grid, grid_of
from upq.layers.fake import fake_quantize

BITS = pytest.mark.parametrize("bits", [2, 4])


def weight_of(seed: int) -> torch.Tensor:
    return torch.randn(6, 128, generator=torch.Generator().manual_seed(seed)) ** 3


@BITS
@given(seed=st.integers(0, 2**16), group=st.sampled_from([16, 32, 64, 128]))
def test_training_form_equals_packed_and_decoded_to_the_last_bit(
    bits: int, seed: int, group: int
) -> None:
    grid, weight = grid_of("signed", bits), weight_of(seed)
    scale, zero = grid.fit(weight, group)
    assert zero is not None
    stored = scale.log().exp().half().float()  # what comes back of the logarithm, as stored
    log_scale = stored.log()
    stored = torch.where(log_scale.exp() == stored, stored, 2.0**-6)
    trained = fake_quantize(weight, stored.log(), grid, zero=zero)
    assert torch.equal(trained, round_trip(grid, weight, stored, zero))


@BITS
def test_a_level_is_the_formula_of_gguf(bits: int) -> None:
    """Q4_0 is d (n - 8), d of either sign; Q2_0 is d (q - 1), whose d is ours negated with the codes in reverse."""
    grid, weight = grid_of("signed", bits), weight_of(0)
    packed = grid.pack(weight, *grid.fit(weight, 64))
    assert packed.zeros is None
    codes = unpack(packed.codes, bits).float().view(6, 2, 64)
    scale = packed.scale.float().unsqueeze(-1)
    assert (scale < 0).any()
    assert (scale > 0).any()
    weight = (codes - 2 ** (bits - 1)) * scale
    assert torch.equal(dequantize(packed), weight.flatten(1))
    assert torch.equal(weight, -scale * ((2**bits - 1 - codes) - (2 ** (bits - 1) - 1)))


@BITS
def test_the_largest_weight_takes_the_level_that_one_side_has_more(bits: int) -> None:
    grid = grid_of("signed", bits)
    weight = torch.full((2, 16), 0.25)
    weight[0, 3], weight[1, 3] = 1.0, -1.0
    packed = grid.pack(weight, *grid.fit(weight, 16, "absmax"))
    assert packed.scale.flatten().tolist() == [-1 / 2 ** (bits - 1), 1 / 2 ** (bits - 1)]
    assert dequantize(packed)[:, 3].tolist() == [1.0, -1.0]


def test_of_normal_weights_it_has_less_error_than_the_odd_grid_at_four_bits() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))

    def error(grid: Grid) -> float:
        return (round_trip(grid, weight, *grid.fit(weight, 64)) - weight).square().mean().item()

    assert error(grid_of("signed", 4)) < 0.95 * error(Grid(4))


def test_eight_bits_never_use_code_zero() -> None:
    weight = weight_of(3)
    packed = INT8.pack(weight, *INT8.fit(weight, 0, "absmax"))
    assert packed.zero == 128
    assert int(packed.codes.min()) >= 1
    assert (packed.scale > 0).all()
    assert (dequantize(packed) - weight).abs().max() <= packed.scale.max() * 0.51


@BITS
def test_its_zero_is_not_trained(bits: int) -> None:
    assert not grid_of("signed", bits).trains_zeros
