"""The arithmetic of charts: every value on its axis, thinned curves, fronts, names that do not cover each other."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.html import axes


@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30),
    st.booleans(),
)
def test_every_value_lies_on_its_axis(values: list[float], from_zero: bool) -> None:
    axis = axes.linear_axis(values, from_zero)
    tolerance = 1e-6 * max(map(abs, values))
    assert axis.low <= min(values) + tolerance
    assert axis.high >= max(values) - tolerance
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert 2 <= len(axis.ticks) <= 8


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_a_log_axis_holds_every_positive_value_and_has_a_few_ticks(values: list[float]) -> None:
    axis = axes.log_axis(values)
    assert all(axis.low <= value * 1.001 and value <= axis.high * 1.001 for value in values)
    assert 1 <= len(axis.ticks) <= 2 * axes.TICKS
    assert all(axis.low * 0.999 <= tick <= axis.high * 1.001 for tick in axis.ticks)


def test_a_log_axis_wastes_no_decade() -> None:
    axis = axes.log_axis([0.12, 13.0])
    assert (axis.low, axis.high) == pytest.approx((0.1, 20.0))


@given(st.lists(st.floats(1e-9, 1e9), max_size=30))
def test_zero_lies_below_the_break_of_a_log_axis_and_everything_else_above(
    values: list[float],
) -> None:
    axis = axes.log_axis([0.0, *values])
    assert axis.broken
    assert axis.ticks[0] == axis.place(0.0) == 0.0
    assert all(axes.ZERO_SHARE <= axis.place(value) <= 1 for value in values)
    assert sorted(map(axis.place, values)) == [axis.place(value) for value in sorted(values)]
    assert not axes.log_axis(values or [1.0]).broken


def test_long_curves_are_thinned_and_keep_their_last_point() -> None:
    points = [(float(step), step / 7) for step in range(10_000)]
    thinned = axes.thin(points)
    assert len(thinned) <= axes.MAX_POINTS
    assert thinned[-1] == points[-1]


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(POINTS, st.booleans())
def test_the_front_holds_exactly_the_points_that_nothing_beats(
    points: list[tuple[int, int]], higher_is_better: bool
) -> None:
    def beats(point: tuple[int, int], other: tuple[int, int]) -> bool:
        better = point[1] >= other[1] if higher_is_better else point[1] <= other[1]
        return point != other and point[0] <= other[0] and better

    expected = {point for point in points if not any(beats(other, point) for other in points)}
    assert axes.front(points, higher_is_better) == sorted(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=24))
def test_names_cover_neither_each_other_nor_dots(places: list[tuple[float, float]]) -> None:
    names = [f"#{index} RTN INT4" for index in range(len(places))]
    sides = axes.name_sides(places, names)
    wide, tall = axes.PLOT_PIXELS
    boxes = {
        own: axes._name_box(x * wide, y * tall, axes.CHARACTER_PIXELS * len(name), side)
        for own, ((x, y), name, side) in enumerate(zip(places, names, sides, strict=True))
        if side
    }
    for box, other in combinations(boxes.values(), 2):
        assert axes._apart(box, other)
    dots = [axes._box(x * wide, y * tall, axes.DOT_PIXELS, axes.DOT_PIXELS) for x, y in places]
    for own, box in boxes.items():
        assert all(axes._apart(box, dot) for dot in dots[:own] + dots[own + 1 :])


def test_a_lone_name_stands_right_of_its_dot_and_left_at_the_right_edge() -> None:
    assert axes.name_sides([(0.5, 0.5)], ["#1 INT2"]) == ["right"]
    assert axes.name_sides([(1.0, 0.5)], ["#1 INT2"]) == ["left"]
