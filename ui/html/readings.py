"""What a chart says in words: the values of a place, under the pointer or the keyboard's focus, and all as a table.

Every place of a chart is a radio button: the whole chart is one stop of the Tab key, the arrow keys go from place to
place, and a tap chooses one. None of it needs a script, so that a report has it as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ui.html.markup import Html, tag
from ui.html.parts import table
from upq.units import NO_VALUE


@dataclass(frozen=True)
class Value:
    """A value of a place: whose it is, as text, and in which colour class that is drawn."""

    name: str
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Reading:
    """A place of a chart, such as "block 3", with the values there.

    left and width are those of its strip, at is where in it the values stand: shares of the plot's width.
    """

    name: str
    values: Sequence[Value]
    left: float = 0.0
    width: float = 0.0
    at: float = 0.0

    @property
    def words(self) -> str:
        """The reading as one line, as a screen reader says it."""
        return f"{self.name}: " + "; ".join(f"{value.name} {value.text}" for value in self.values)


def group_of(title: str, readings: Sequence[Reading]) -> str:
    """Return a name that the radio buttons of this chart share, and those of no other."""
    words = "\n".join([title, *(reading.words for reading in readings)])
    return f"chart-{hashlib.sha256(words.encode(errors='replace')).hexdigest()[:12]}"


def button(reading: Reading, group: str) -> Html:
    """Draw the radio button of a place, which shows nothing of itself."""
    return tag("input", type="radio", name=group, aria_label=reading.words)


def tip(reading: Reading, side: str) -> Html:
    """Draw the values of a place as what appears beside it; side is that on which there is room, left or right."""
    lines = [
        tag("span", tag("i", class_=f"key {value.kind}"), f"{value.name} ", tag("b", value.text))
        for value in reading.values
    ]
    return tag("span", tag("em", reading.name), *lines, class_=f"tip {side}", aria_hidden="true")


def strips(readings: Sequence[Reading], group: str) -> list[Html]:
    """Draw the places of a chart as strips from its bottom to its top."""
    return [
        tag(
            "label",
            button(reading, group),
            tip(reading, "right" if reading.at < 0.5 else "left"),
            class_="reading",
            style=_strip(reading),
        )
        for reading in readings
    ]


def _strip(reading: Reading) -> str:
    inside = (reading.at - reading.left) / reading.width
    place = f"left:{100 * reading.left:.2f}%;width:{100 * reading.width:.2f}%"
    return f"{place};--at:{100 * inside:.0f}%"


def values_table(head: str, readings: Sequence[Reading]) -> Html:
    """Draw the readings as a table that folds out, one row for each place and one column for each name."""
    names = list(dict.fromkeys(value.name for reading in readings for value in reading.values))
    rows = []
    for reading in readings:
        found = {value.name: value.text for value in reading.values}
        rows.append([reading.name, *(found.get(name, NO_VALUE) for name in names)])
    drawn = table((head, *names), rows, numeric=range(1, len(names) + 1))
    return tag("details", tag("summary", "Values as a table"), drawn, class_="values")
