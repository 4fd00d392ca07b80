"""Small charts: curves, before/after bars and a scatter with its Pareto front, as pure functions of numbers.

The drawing is an SVG stretched over its box and every label is HTML placed in percent, so text keeps
its size from a phone to a wide screen and a stroke never gets thick. Colours are classes of theme.css.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ui.html.axes import Axis, close_axis, ends_axis, front, linear_axis, log_axis, name_sides, thin
from ui.html.markup import Html, join, tag
from ui.html.words import number

Scale = Callable[[Sequence[float]], Axis]


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
    """One point of a scatter with the text shown beside it and on hover."""

    x: float
    y: float
    kind: str
    name: str
    hint: str
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
    """Draw curves over a common axis with a legend that carries the latest values."""
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
    return _frame(title, legend, _plot(title, x_axis, y_axis, curves, ends, x_name))


def _curve(curve: Series, x_axis: Axis, y_axis: Axis) -> Html:
    points = " ".join(
        f"{100 * x_axis.place(x):.2f},{100 - 100 * y_axis.place(y):.2f}" for x, y in curve.points
    )
    return tag(
        "polyline", points=points, class_=f"curve {curve.kind}{' dashed' if curve.dashed else ''}"
    )


def _end_mark(curve: Series, x_axis: Axis, y_axis: Axis) -> Html:
    x, y = curve.points[-1]
    hint = f"{curve.name}: {number(y)}"
    label = tag("b", curve.label, class_="right") if curve.label else None
    return _mark(x_axis.place(x), y_axis.place(y), f"mark {curve.kind}", hint, label)


def _mark(x: float, y: float, class_: str, hint: str, *children: object) -> Html:
    place = f"left:{100 * x:.2f}%;bottom:{100 * y:.2f}%"
    return tag("span", *children, class_=class_, style=place, title=hint)


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
    title: str,
    dots: Sequence[Dot],
    *,
    x_name: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str] = number,
    higher_is_better: bool = False,
    empty: str,
) -> Html:
    """Draw named points, less x is better. The Pareto front is drawn and its points are named below.

    A y where less is better has a logarithmic axis, with 0 at its lower end.
    """
    if not dots:
        return _frame(title, None, tag("p", empty, class_="chart-empty"))
    x_axis = linear_axis([dot.x for dot in dots])
    y_axis = (close_axis if higher_is_better else log_axis)([dot.y for dot in dots])
    best = front([(dot.x, dot.y) for dot in dots], higher_is_better)
    line = _curve(Series("front", "front", best), x_axis, y_axis) if len(best) > 1 else Html()
    ordered = sorted(dots, key=lambda dot: ((dot.x, dot.y) not in best, dot.hollow))
    places = [(x_axis.place(dot.x), y_axis.place(dot.y)) for dot in ordered]
    sides = name_sides(places, [dot.name for dot in ordered])
    marks = join(
        _mark(
            *place,
            f"dot {dot.kind}{' hollow' if dot.hollow else ''}",
            dot.hint,
            tag("b", dot.name, class_=side if (dot.x, dot.y) in best else f"{side} minor")
            if side
            else None,
        )
        for dot, place, side in zip(ordered, places, sides, strict=True)
    )
    names = [dot.name for dot in sorted(ordered, key=lambda dot: dot.x) if (dot.x, dot.y) in best]
    legend = [(f"Pareto front: {', '.join(names)}", "front", "")]
    return _frame(title, legend, _plot(title, x_axis, y_axis, line, marks, x_name, x_text, y_text))


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
        aria_label=title,
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
    return tag("div", svg, marks, *y_labels, *x_labels, name, class_="plot")
