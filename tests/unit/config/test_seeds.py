"""Derived seeds stay what they are, and no part of a run shares its seed with a part of another."""

from __future__ import annotations

from upq.config import derived_seed

PARTS = ("rotations", "calibration", "distillation")


def test_derived_seeds_are_pinned_because_stored_runs_go_on_with_them() -> None:
    assert [derived_seed(0, part) for part in PARTS] == [
        1131574457449323903,
        3397032670130683273,
        3695331608090143094,
    ]
    assert [derived_seed(1, part) for part in PARTS] == [
        943012147421988310,
        1212872196830793495,
        2391686842502322677,
    ]


def test_no_two_parts_of_neighbouring_runs_share_a_seed() -> None:
    seeds = {derived_seed(seed, part) for seed in range(100) for part in PARTS}
    assert len(seeds) == 100 * len(PARTS)


def test_a_derived_seed_suits_every_generator() -> None:
    assert all(0 <= derived_seed(seed, "block 3") < 2**63 for seed in (0, 1, 2**31 - 1))
    assert derived_seed(derived_seed(0, "rotations"), "block 3") == 3057717550168332412
