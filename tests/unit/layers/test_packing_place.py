"""Codes are packed where the weight lies: a GPU sends bytes of codes to the host, never the weight.

The GPU is played by device "meta" inside of a FakeTensorMode, where its tensors may be copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.packing import PackedWeight
from kernels.transform import Transform
from tests.support.host_reads import ToHost
from upq.layers import FakeQuantLinear, FixedCodesLinear, Grid, Latent, grid_of

ROWS, COLUMNS, GROUP = 64, 256, 64
GRIDS = [grid_of(kind, bits) for kind in ("odd", "integer_zero", "signed") for bits in (2, 4)]


def latent_of(grid: Grid, device: str) -> Latent:
    """A rotated layer; on "meta" one without values, inside of a FakeTensorMode."""
    weight = torch.linspace(-1, 1, ROWS * COLUMNS, device=device).view(ROWS, COLUMNS).sin()
    latent = Latent(weight, *grid.fit(weight, GROUP, "absmax"))
    return replace(latent, transform=Transform(32, scale_in=torch.ones(COLUMNS, device=device)))


def packed_by_layer(grid: Grid, device: str) -> PackedWeight:
    return FakeQuantLinear(latent_of(grid, device), None, grid).pack()


def packed_by_fixed_codes(grid: Grid, device: str) -> PackedWeight:
    return FixedCodesLinear(FakeQuantLinear(latent_of(grid, device), None, grid)).pack()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("pack", [packed_by_layer, packed_by_fixed_codes])
def test_no_more_than_the_packed_bytes_leave_a_gpu(
    grid: Grid, pack: Callable[[Grid, str], PackedWeight]
) -> None:
    with FakeTensorMode(), ToHost() as moved:
        packed = pack(grid, "meta")
        assert packed.codes.device == packed.scale.device == torch.device("cpu")
        assert moved.bytes == packed.size_bytes < ROWS * COLUMNS


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_way_of_packing_gives_the_same_bits(grid: Grid) -> None:
    layer = FakeQuantLinear(latent_of(grid, "cpu"), None, grid)
    by_layer, by_latent = layer.pack(), layer.latent().pack(grid)
    assert torch.equal(by_layer.codes, by_latent.codes)
    assert torch.equal(by_layer.scale, by_latent.scale)
    fixed = packed_by_fixed_codes(grid, "cpu")
    assert torch.equal(fixed.codes, by_layer.codes)
