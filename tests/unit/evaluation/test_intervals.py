"""Intervals and tests against published values, exact enumeration and simulation."""

import math
import random

import pytest

from upq.evaluation import Share
from upq.evaluation.intervals import Paired, bootstrap_mean, paired


@pytest.mark.parametrize(
    ("passed", "of", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),  # as statsmodels' proportion_confint(8, 10, method="wilson")
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (81, 263, 0.2552809, 0.3662158),  # Newcombe (1998), table I: 0.2553 to 0.3662
        (1, 29, 0.0061134, 0.1717550),  # the same table: 0.0061 to 0.1718
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval_has_the_published_values(
    passed: int, of: int, low: float, high: float
) -> None:
    assert Share(passed, of).interval == pytest.approx((low, high), abs=1e-5)


def test_an_interval_holds_its_share_and_narrows_with_more_data() -> None:
    for of in (1, 7, 541):
        for passed in range(of + 1):
            low, high = Share(passed, of).interval
            assert 0 <= low <= Share(passed, of).value <= high <= 1
    small, large = Share(3, 10).interval, Share(300, 1000).interval
    assert large[1] - large[0] < (small[1] - small[0]) / 5


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(1, 9, 0.021484375), (9, 1, 0.021484375), (0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625)],
)
def test_mcnemars_test_has_the_exact_values(lost: int, gained: int, p: float) -> None:
    assert Paired(lost, gained, 100).p == p


def test_mcnemars_test_counts_every_split_at_least_as_uneven() -> None:
    for lost in range(8):
        for gained in range(8):
            changed = lost + gained
            uneven = abs(lost - gained)
            as_uneven = sum(
                math.comb(changed, count)
                for count in range(changed + 1)
                if abs(changed - 2 * count) >= uneven
            )
            assert Paired(lost, gained, 50).p == as_uneven / 2**changed


def test_thousands_of_changed_items_are_no_trouble() -> None:
    assert Paired(2000, 2100, 14_042).p == pytest.approx(0.1222, abs=1e-3)
    assert Paired(1000, 4000, 14_042).p < 1e-300


def test_pairs_are_matched_by_key_and_the_unjudged_are_left_out() -> None:
    before = {1: True, 2: True, 3: False, 4: False, 5: None, 6: True, 7: True}
    after = {1: True, 2: False, 3: True, 4: False, 5: True, 6: None, 8: True}
    assert paired(before, after) == Paired(lost=1, gained=1, pairs=4)


def test_the_bootstrap_covers_the_true_mean_about_19_times_in_20() -> None:
    source, covered, trials = random.Random(0), 0, 200
    for trial in range(trials):
        counts = [source.randint(5, 40) for _ in range(60)]
        # Values of one cluster share a shift, as the tokens of one answer do.
        shifts = [source.gauss(0, 1) for _ in counts]
        sums = [count * (2.0 + shift) for count, shift in zip(counts, shifts, strict=True)]
        low, high = bootstrap_mean(sums, counts, seed=trial)
        covered += low <= 2.0 <= high
    assert 0.90 <= covered / trials <= 0.98


def test_the_bootstrap_is_reproducible_and_weighs_clusters_by_their_counts() -> None:
    sums, counts = [float(one * one) for one in range(30)], [10] * 30
    assert bootstrap_mean(sums, counts) == bootstrap_mean(sums, counts)
    assert bootstrap_mean(sums, counts) != bootstrap_mean(sums, counts, seed=1)
    ends = bootstrap_mean([10.0, 0.0, 30.0], [10, 20, 10])
    assert ends == (0.0, 3.0), "three times the same cluster is not rare"
    assert bootstrap_mean([6.0, 12.0], [3, 6]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="0 sums"):
        bootstrap_mean([], [])
