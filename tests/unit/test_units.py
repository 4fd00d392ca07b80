"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from upq import units


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.045, "45 ms"),
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (190, "3 min 10 s"),
        (660, "11 min"),
        (7500, "2 h 5 min"),
        (400_000, "4 days"),
        (None, units.NO_VALUE),
    ],
)
def test_durations_read_well(seconds: float | None, expected: str) -> None:
    assert units.duration(seconds) == expected


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(512, "512 B"), (81_234_567, "81.2 MB"), (269_000_000, "269 MB"), (2.1e9, "2.1 GB")],
)
def test_sizes_read_well(size_bytes: float, expected: str) -> None:
    assert units.size(size_bytes) == expected
