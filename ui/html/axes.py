"""The arithmetic of charts: scales with round ends, thinning, Pareto fronts, and where names find room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 400
#: A chart of curves is read at so many places at most.
READINGS = 24
#: The share of a logarithmic axis that lies below its break, at whose lower end 0 has its place.
ZERO_SHARE = 0.14
TICKS = 4
#: The size that a plot is taken to have when names are placed, and that of the names, pixels.
PLOT_PIXELS = (620.0, 270.0)
CHARACTER_PIXELS, LINE_PIXELS, DOT_PIXELS = 6.4, 15.0, 14.0
SIDES = ("right", "left", "above", "below")

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """A scale from values to 0..1, linear or logarithmic. A broken one is logarithmic and has a place for 0."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False
    broken: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value between the ends, clipped to 0..1."""
        if self.broken and value <= 0:
            return 0.0
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return ZERO_SHARE + (1 - ZERO_SHARE) * share if self.broken else share


def linear_axis(values: Sequence[float], from_zero: bool = True) -> Axis:
    """Return an axis with round ends and about TICKS round ticks around the values."""
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        low = 0.0
    if high == low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(first * step, last * step, ticks)


def close_axis(values: Sequence[float]) -> Axis:
    """Return a linear axis that need not begin at zero."""
    return linear_axis(values, from_zero=False)


def ends_axis(values: Sequence[float]) -> Axis:
    """Return an axis from the lowest value to the highest with a tick at either, as for steps and blocks."""
    low, high = min(values), max(values)
    return Axis(low, high if high > low else low + 1, (low, high))


def log_axis(values: Sequence[float]) -> Axis:
    """Return an axis from one, two or five times a power of ten to another, around the positive values.

    A logarithmic axis never reaches 0; where there is one, the axis is broken, and 0 lies at its lower end.
    """
    positive = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    marks = [
        factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1.0, 2.0, 5.0)
    ]
    low = max(mark for mark in marks if mark <= min(positive) * (1 + 1e-9))
    high = min(mark for mark in [*marks, 10.0 ** (last + 1)] if mark >= max(positive) * (1 - 1e-9))
    if high <= low:
        low, high = low / 2, high * 2
    inside = [mark for mark in marks if low <= mark <= high]
    if len(inside) > 2 * TICKS:
        powers = [10.0**power for power in range(first, last + 1) if low <= 10.0**power <= high]
        inside = powers[:: max(1, math.ceil(len(powers) / TICKS))]
    broken = any(value <= 0 for value in values)
    ticks = (0.0, *inside) if broken else tuple(inside)
    return Axis(low, high, ticks, logarithmic=True, broken=broken)


def _round_step(raw: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999
    )


def thin(points: Sequence[Point]) -> list[Point]:
    """Return at most MAX_POINTS points: means of equal slices; the last point stays exact."""
    if len(points) <= MAX_POINTS:
        return list(points)
    width = math.ceil(len(points) / (MAX_POINTS - 1))
    slices = [points[start : start + width] for start in range(0, len(points), width)]
    means = [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in slices]
    return [*means[:-1], points[-1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def front(points: Sequence[Point], higher_is_better: bool = False) -> list[Point]:
    """Return the points that no other point beats with less x and a better y, by rising x."""
    sign = -1.0 if higher_is_better else 1.0
    best: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not best or sign * y < sign * best[-1][1]:
            best.append((x, y))
    return best


def name_sides(places: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Choose on which of SIDES of its dot each name stands; "" where none has room. The first come first.

    places holds positions in 0..1, from the lower left.
    """
    wide, tall = PLOT_PIXELS
    taken = [_box(x * wide, y * tall, DOT_PIXELS, DOT_PIXELS) for x, y in places]
    sides = []
    for own, ((x, y), name) in enumerate(zip(places, names, strict=True)):
        width = CHARACTER_PIXELS * len(name)
        boxes = {side: _name_box(x * wide, y * tall, width, side) for side in SIDES}
        others = taken[:own] + taken[own + 1 :]
        free = (side for side, box in boxes.items() if _fits(box, others))
        sides.append(next(free, ""))
        if sides[-1]:
            taken.append(boxes[sides[-1]])
    return sides


def _name_box(x: float, y: float, width: float, side: str) -> Box:
    gap = DOT_PIXELS / 2 + width / 2
    if side in ("right", "left"):
        return _box(x + (gap if side == "right" else -gap), y, width, LINE_PIXELS)
    return _box(x, y + (LINE_PIXELS if side == "above" else -LINE_PIXELS), width, LINE_PIXELS)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _fits(box: Box, others: Sequence[Box]) -> bool:
    inside = box[0] >= -40 and box[2] <= PLOT_PIXELS[0] + 20 and box[1] >= -8
    return inside and all(_apart(box, other) for other in others)


def _apart(box: Box, other: Box) -> bool:
    beside = box[2] <= other[0] or other[2] <= box[0]
    return beside or box[3] <= other[1] or other[3] <= box[1]
