"""Every grid by its name among the settings."""

from __future__ import annotations

from upq.layers.grid import Grid
from upq.layers.two_levels import TwoLevelGrid
from upq.layers.zeros import IntegerZeroGrid, SignedGrid

GRIDS: dict[str, type[Grid]] = {
    grid.kind: grid for grid in (Grid, SignedGrid, TwoLevelGrid, IntegerZeroGrid)
}


def grid_of(kind: str, bits: int) -> Grid:
    """The grid of a kind, one of GRIDS, with codes of so many bits."""
    return GRIDS[kind](bits)
