"""Small charts: curves, before/after bars and a scatter with its Pareto front, as pure functions of numbers.

The drawing is an SVG stretched over its box and every label is HTML placed in percent, so text keeps
its size from a phone to a wide screen and a stroke never gets thick. Colours are classes of theme.css.
Every chart can be read: see ui.html.readings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ui.html.axes import (
    READINGS,
    ZERO_SHARE,
    Axis,
    Point,
    close_axis,
    ends_axis,
    front,
    linear_axis,
    log_axis,
    name_sides,
    thin,
)
from ui.html.markup import Html, join, tag
from ui.html.readings import Reading, Value, button, group_of, strips, tip, values_table
from ui.html.words import number

Scale = Callable[[Sequence[float]], Axis]
#: An entry of a legend: its words, the classes of its sign, and a value or "".
Key = tuple[str, str, str]
BROKEN = "the axis is broken: 0 has no place on a logarithmic scale and stands below the break"


@dataclass(frozen=True)
class Series:
    """A named curve. points are (x, y); kind is a colour class such as "int4".

    label stands at its end; a quiet curve has no end mark and no place in the legend.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    label: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Dot:
    """One point of a scatter. kind is its colour class, shape one of round, square and diamond.

    A hollow one is there to compare with, and takes no part in the front.
    """

    x: float
    y: float
    kind: str
    name: str
    shape: str = "round"
    hollow: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    empty: str,
    x_scale: Scale = ends_axis,
    y_scale: Scale = linear_axis,
) -> Html:
    """Draw curves over a common axis with a legend that carries the latest values.

    What stands behind a comma in x_name is a remark, which belongs to the axis alone.
    """
    drawn = [replace(curve, points=thin(sorted(curve.points))) for curve in series if curve.points]
    if not drawn:
        return _frame(title, None, tag("p", empty, class_="chart-empty"))
    x_axis = x_scale([x for curve in drawn for x, _ in curve.points])
    y_axis = y_scale([y for curve in drawn for _, y in curve.points])
    curves = join(_curve(curve, x_axis, y_axis) for curve in drawn)
    labelled = [curve for curve in drawn if not curve.quiet]
    legend = [
        (
            curve.name,
            f"{curve.kind}{' dashed' if curve.dashed else ''}",
            number(curve.points[-1][1]),
        )
        for curve in labelled
    ]
    ends = join(_end_mark(curve, x_axis, y_axis) for curve in labelled)
    short_name = x_name.partition(",")[0]
    readings = _curve_readings(drawn, x_axis, short_name)
    places = strips(readings, group_of(title, readings))
    plot = _plot(title, x_axis, y_axis, curves, join([ends, *places]), x_name)
    return _frame(title, legend, plot, values_table(short_name, readings))


def _curve_readings(curves: Sequence[Series], x_axis: Axis, x_name: str) -> list[Reading]:
    """Return what the curves are at READINGS places or fewer: of each curve its last point in that part of the axis."""
    parts: dict[int, dict[str, tuple[Point, str]]] = {}
    for curve in curves:
        for x, y in curve.points:
            part = min(int(x_axis.place(x) * READINGS), READINGS - 1)
            parts.setdefault(part, {})[curve.name] = ((x, y), curve.kind)
    readings = []
    for part, found in sorted(parts.items()):
        xs = [x for (x, _), _ in found.values()]
        span = " to ".join(dict.fromkeys([number(min(xs)), number(max(xs))]))
        values = [Value(name, number(y), kind) for name, ((_, y), kind) in found.items()]
        at = x_axis.place(sum(xs) / len(xs))
        readings.append(Reading(f"{x_name} {span}", values, part / READINGS, 1 / READINGS, at))
    return readings


def _curve(curve: Series, x_axis: Axis, y_axis: Axis) -> Html:
    points = " ".join(
        f"{100 * x_axis.place(x):.2f},{100 - 100 * y_axis.place(y):.2f}" for x, y in curve.points
    )
    return tag(
        "polyline", points=points, class_=f"curve {curve.kind}{' dashed' if curve.dashed else ''}"
    )


def _end_mark(curve: Series, x_axis: Axis, y_axis: Axis) -> Html:
    x, y = curve.points[-1]
    label = tag("b", curve.label, class_="right") if curve.label else None
    place = _place(x_axis.place(x), y_axis.place(y))
    return tag("span", label, class_=f"mark {curve.kind}", style=place)


def _place(x: float, y: float) -> str:
    return f"left:{100 * x:.2f}%;bottom:{100 * y:.2f}%"


def block_chart(
    title: str, kind: str, before: dict[int, float], after: dict[int, float], *, blocks: int = 0
) -> Html:
    """Draw the reconstruction error of each decoder block before and after training, on a log scale.

    blocks is how many decoder blocks the model has, so that the bars stand still while they appear.
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
    readings = [
        _block_reading(index, count, before.get(index), after.get(index), kind)
        for index in sorted({*before, *after})
    ]
    places = join(strips(readings, group_of(title, readings)))
    plot = _plot(title, blocks_axis, axis, bars, places, "block")
    return _frame(title, legend, plot, values_table("block", readings))


def _block_reading(
    index: int, count: int, before: float | None, after: float | None, kind: str
) -> Reading:
    values = [
        Value("before", number(before), f"{kind} hollow"),
        Value("after", number(after), kind),
    ]
    return Reading(f"block {index}", values, index / count, 1 / count, (index + 0.5) / count)


def _bar_pair(
    index: int, count: int, before: float | None, after: float | None, axis: Axis, kind: str
) -> Html:
    slot = 100 / count
    bars = [
        _bar(index * slot + shift * slot, 0.36 * slot, axis.place(value), class_)
        for value, shift, class_ in ((before, 0.12, f"{kind} hollow"), (after, 0.52, kind))
        if value is not None
    ]
    return tag("g", *bars)


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
    y_name: str,
    dots: Sequence[Dot],
    *,
    x_name: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str] = number,
    higher_is_better: bool = False,
    legend: Sequence[Key] = (),
    empty: str,
) -> Html:
    """Draw named points, less x is better. The Pareto front is drawn and its points are named below.

    A y where less is better has a logarithmic axis, broken where there is a 0.
    """
    title = f"{y_name} against {x_name}"
    if not dots:
        return _frame(title, None, tag("p", empty, class_="chart-empty"))
    x_axis = linear_axis([dot.x for dot in dots])
    y_axis = (close_axis if higher_is_better else log_axis)([dot.y for dot in dots])
    best = front([(dot.x, dot.y) for dot in dots if not dot.hollow], higher_is_better)
    line = _curve(Series("front", "front", best), x_axis, y_axis) if len(best) > 1 else Html()
    ordered = sorted(dots, key=lambda dot: (not _is_on(best, dot), dot.hollow))
    places = [(x_axis.place(dot.x), y_axis.place(dot.y)) for dot in ordered]
    sides = name_sides(places, [dot.name for dot in ordered])
    readings = [
        Reading(dot.name, [Value(x_name, x_text(dot.x)), Value(y_name, y_text(dot.y))])
        for dot in ordered
    ]
    group = group_of(title, readings)
    names = [
        tag("b", dot.name, class_=side if _is_on(best, dot) else f"{side} minor") if side else None
        for dot, side in zip(ordered, sides, strict=True)
    ]
    marks = join(
        _dot(dot, place, name, reading, group)
        for dot, place, name, reading in zip(ordered, places, names, readings, strict=True)
    )
    front_names = [dot.name for dot in sorted(ordered, key=lambda dot: dot.x) if _is_on(best, dot)]
    keys = [*legend, (f"Pareto front: {', '.join(front_names)}", "front", "")] if best else legend
    plot = _plot(title, x_axis, y_axis, line, marks, x_name, x_text, y_text)
    return _frame(title, keys, plot, values_table("model", readings))


def _dot(dot: Dot, place: Point, name: Html | None, reading: Reading, group: str) -> Html:
    shape = tag("i", class_=f"{dot.shape}{' hollow' if dot.hollow else ''}")
    words = tip(reading, "right" if place[0] < 0.5 else "left")
    parts = [button(reading, group), shape, name, words]
    return tag("label", *parts, class_=f"dot {dot.kind}", style=_place(*place))


def _is_on(best: Sequence[Point], dot: Dot) -> bool:
    """Whether a dot is one of those that nothing beats."""
    return not dot.hollow and (dot.x, dot.y) in best


def _frame(title: str, legend: Sequence[Key] | None, *body: Html) -> Html:
    keys = [
        tag("span", tag("i", class_=f"key {kind}"), name, tag("b", value) if value else None)
        for name, kind, value in legend or ()
    ]
    caption = tag("figcaption", tag("span", title), tag("span", *keys, class_="legend"))
    return tag("figure", caption, *body, class_="chart")


def _plot(
    title: str,
    x_axis: Axis,
    y_axis: Axis,
    drawing: Html,
    marks: Html,
    x_name: str,
    x_text: Callable[[float], str] = number,
    y_text: Callable[[float], str] = number,
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
        aria_label=f"{title}, {BROKEN}" if y_axis.broken or x_axis.broken else title,
    )
    y_labels = [
        tag("span", y_text(tick), class_="y", style=f"bottom:{100 * y_axis.place(tick):.2f}%")
        for tick in y_axis.ticks
    ]
    x_labels = [
        tag("span", x_text(tick), class_="x", style=f"left:{100 * x_axis.place(tick):.2f}%")
        for tick in dict.fromkeys(x_axis.ticks)
    ]
    name = tag("span", x_name, class_="x-name")
    breaks = [
        tag(
            "span",
            class_=f"break {direction}",
            style=f"{side}:{50 * ZERO_SHARE:.2f}%",
            title=BROKEN,
        )
        for axis, direction, side in ((y_axis, "y-break", "bottom"), (x_axis, "x-break", "left"))
        if axis.broken
    ]
    drawn = [svg, *breaks, *y_labels, *x_labels, name, marks]
    return tag("div", *drawn, class_="plot", role="group", aria_label=title)
