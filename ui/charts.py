"""Small charts: curves, before/after bars and a scatter, as pure functions of numbers.

The drawing is an SVG stretched over its box and every label is HTML placed in percent, so text keeps
its size from a phone to a wide screen and a stroke never gets thick. Colours are classes of theme.css.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ui.html import Html, join, tag
from ui.words import number

MAX_POINTS = 400
TICKS = 4


@dataclass(frozen=True)
class Series:
    """A named curve: points are (x, y); kind is a colour class such as "int4"."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """One point of a scatter with the text shown beside it and on hover."""

    x: float
    y: float
    kind: str
    name: str
    hint: str
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """A scale from values to 0..1, linear or logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Position of a value between the ends, clipped to 0..1."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear_axis(values: Sequence[float], from_zero: bool = True) -> Axis:
    """Round ends and about TICKS round ticks around the values."""
    low, high = min(values), max(values)
    if from_zero and low >= 0:
        low = 0.0
    if high == low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Axis(first * step, last * step, ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """Powers of ten around the positive values."""
    positive = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    last = max(last, first + 1)
    stride = max(1, math.ceil((last - first) / TICKS))
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Axis(10.0**first, 10.0**last, ticks, logarithmic=True)


def _round_step(raw: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: means of equal slices; the last point stays exact."""
    if len(points) <= MAX_POINTS:
        return list(points)
    width = math.ceil(len(points) / (MAX_POINTS - 1))
    slices = [points[start : start + width] for start in range(0, len(points), width)]
    means = [(_mean([x for x, _ in part]), _mean([y for _, y in part])) for part in slices]
    return [*means[:-1], points[-1]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def line_chart(title: str, series: Sequence[Series], *, x_name: str, empty: str) -> Html:
    """Curves over a common axis with a legend that carries the latest values."""
    drawn = [Series(one.name, one.kind, thin(sorted(one.points))) for one in series if one.points]
    if not drawn:
        return _frame(title, None, tag("p", empty, class_="chart-empty"))
    xs = [x for one in drawn for x, _ in one.points]
    x_axis = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, (min(xs), max(xs)))
    y_axis = linear_axis([y for one in drawn for _, y in one.points])
    curves = join(_curve(one, x_axis, y_axis) for one in drawn)
    legend = [(one.name, one.kind, number(one.points[-1][1])) for one in drawn]
    ends = join(_end_mark(one, x_axis, y_axis) for one in drawn)
    return _frame(title, legend, _plot(title, x_axis, y_axis, curves, ends, x_name))


def _curve(one: Series, x_axis: Axis, y_axis: Axis) -> Html:
    points = " ".join(
        f"{100 * x_axis.place(x):.2f},{100 - 100 * y_axis.place(y):.2f}" for x, y in one.points
    )
    return tag("polyline", points=points, class_=f"curve {one.kind}")


def _end_mark(one: Series, x_axis: Axis, y_axis: Axis) -> Html:
    x, y = one.points[-1]
    return _mark(x_axis.place(x), y_axis.place(y), f"mark {one.kind}", f"{one.name}: {number(y)}")


def _mark(x: float, y: float, class_: str, hint: str, *children: object) -> Html:
    place = f"left:{100 * x:.2f}%;bottom:{100 * y:.2f}%"
    return tag("span", *children, class_=class_, style=place, title=hint)


def block_chart(
    title: str, kind: str, before: dict[int, float], after: dict[int, float], *, blocks: int = 0
) -> Html:
    """Reconstruction error of each decoder block before and after training, on a log scale.

    blocks: how many decoder blocks the model has, so that the bars stand still while they appear.
    """
    if not before and not after:
        return _frame(
            title, None, tag("p", "The first block is not done yet.", class_="chart-empty")
        )
    axis = log_axis([*before.values(), *after.values()])
    count = blocks or max(*before, *after, 0) + 1
    bars = join(
        _bar_pair(index, count, before.get(index), after.get(index), axis, kind)
        for index in range(count)
    )
    blocks_axis = Axis(0, max(count - 1, 1), (0, count - 1))
    legend = [("before", f"{kind} hollow", ""), ("after", kind, "")]
    return _frame(title, legend, _plot(title, blocks_axis, axis, bars, Html(), "block"))


def _bar_pair(
    index: int, count: int, before: float | None, after: float | None, axis: Axis, kind: str
) -> Html:
    slot = 100 / count
    hint = tag("title", f"block {index}: {number(before)} before, {number(after)} after")
    bars = [
        _bar(index * slot + shift * slot, 0.36 * slot, axis.place(value), class_)
        for value, shift, class_ in ((before, 0.12, f"{kind} hollow"), (after, 0.52, kind))
        if value is not None
    ]
    return tag("g", hint, *bars)


def _bar(left: float, width: float, height: float, kind: str) -> Html:
    tall = max(100 * height, 1.0)
    return tag(
        "rect",
        x=f"{left:.2f}",
        y=f"{100 - tall:.2f}",
        width=f"{width:.2f}",
        height=f"{tall:.2f}",
        class_=f"bar {kind}",
    )


def scatter(
    title: str, dots: Sequence[Dot], *, x_name: str, x_text: Callable[[float], str], empty: str
) -> Html:
    """Named points over a logarithmic y axis; lower left is better, and the front is drawn."""
    if not dots:
        return _frame(title, None, tag("p", empty, class_="chart-empty"))
    x_axis = linear_axis([dot.x for dot in dots])
    y_axis = log_axis([dot.y for dot in dots])
    best = front([(dot.x, dot.y) for dot in dots])
    line = _curve(Series("front", "front", best), x_axis, y_axis) if len(best) > 1 else Html()
    marks = join(
        _mark(
            x_axis.place(dot.x),
            y_axis.place(dot.y),
            f"dot {dot.kind}{' hollow' if dot.hollow else ''}",
            dot.hint,
            tag("b", dot.name, class_=_side(dot, x_axis)),
        )
        for dot in dots
    )
    return _frame(title, None, _plot(title, x_axis, y_axis, line, marks, x_name, x_text))


def _side(dot: Dot, x_axis: Axis) -> str:
    """Where a dot's name stands, so that an artifact and its baseline do not cover each other."""
    if dot.hollow:
        return "left" if x_axis.place(dot.x) > 0.2 else "above"
    return "right" if x_axis.place(dot.x) < 0.8 else "above"


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in both coordinates, by rising x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def _frame(title: str, legend: Sequence[tuple[str, str, str]] | None, body: Html) -> Html:
    keys = [
        tag("span", tag("i", class_=f"key {kind}"), name, tag("b", value) if value else None)
        for name, kind, value in legend or ()
    ]
    caption = tag("figcaption", tag("span", title), tag("span", *keys, class_="legend"))
    return tag("figure", caption, body, class_="chart")


def _plot(
    title: str,
    x_axis: Axis,
    y_axis: Axis,
    drawing: Html,
    marks: Html,
    x_name: str,
    x_text: Callable[[float], str] = number,
) -> Html:
    grid = join(
        tag("line", x1=0, x2=100, y1=y, y2=y, class_="grid")
        for y in (f"{100 - 100 * y_axis.place(tick):.2f}" for tick in y_axis.ticks)
    )
    svg = tag(
        "svg",
        grid,
        drawing,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=title,
    )
    y_labels = [
        tag("span", number(tick), class_="y", style=f"bottom:{100 * y_axis.place(tick):.2f}%")
        for tick in y_axis.ticks
    ]
    x_labels = [
        tag("span", x_text(tick), class_="x", style=f"left:{100 * x_axis.place(tick):.2f}%")
        for tick in dict.fromkeys(x_axis.ticks)
    ]
    name = tag("span", x_name, class_="x-name")
    return tag("div", svg, marks, *y_labels, *x_labels, name, class_="plot")
