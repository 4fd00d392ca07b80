"""From the settings of the form to the HTML of their sections, of what differs from the preset, and of the command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ui.html import Html, join, plural, tag

if TYPE_CHECKING:
    from ui.quantize.advanced import Difference

ALL = "*"


def field_id(path: str) -> str:
    """Return the id of a setting's field in the page."""
    return f"set-{path.replace('.', '-')}"


def section_id(section: str) -> str:
    """Return the id of a section of settings in the page."""
    return f"section-{section.replace('.', '-') or 'run'}"


def search_box() -> Html:
    """Draw the box that finds settings."""
    name = "search-settings"
    label = tag("label", "Find a setting by its name or meaning", for_=name)
    box = tag("input", type="search", id=name, autocomplete="off")
    return tag(
        "div", label, box, tag("p", id="settings-found", role="status"), class_="find-setting"
    )


def section_head(title: str, place: str) -> Html:
    """Draw the button that folds a section and shows how many of its settings differ from the preset."""
    words = [tag("span", title), tag("span", class_="count")]
    button = tag(
        "button",
        *words,
        type="button",
        aria_expanded="false",
        aria_controls=place,
        data_section=place,
    )
    return tag("h3", button)


def changes_panel(found: Sequence[Difference], preset: str, command: str) -> Html:
    """Draw what differs from the preset, with a reset for each and for all, and the line that does the same.

    command: empty where the settings are not valid.
    """
    return tag("div", _changes(found, preset), _command(command) if command else None)


def _changes(found: Sequence[Difference], preset: str) -> Html:
    if not found:
        return tag("p", f"All settings are those of {preset}.", class_="hint")
    title = f"{plural(len(found), 'setting')} {'differs' if len(found) == 1 else 'differ'} from {preset}"
    everything = tag("button", "reset all", type="button", class_="small", data_reset=ALL)
    items = [
        tag(
            "li",
            tag("code", change.path),
            join([_value(change.preset), " → ", tag("b", _value(change.chosen))]),
            tag(
                "button",
                "reset",
                type="button",
                class_="small",
                data_reset=change.path,
                aria_label=f"reset {change.path} to {_value(change.preset)}",
            ),
            data_setting=change.path,
            data_preset=change.preset,
        )
        for change in found
    ]
    head = tag("p", tag("b", title), everything)
    return tag("section", head, tag("ul", *items), class_="changes", aria_label=title)


def _command(command: str) -> Html:
    button = tag("button", "Copy", type="button", class_="small", data_copy=True)
    line = tag("div", tag("pre", command, class_="command", tabindex=0), button, class_="copied")
    return tag("details", tag("summary", "The same on the command line"), line)


def _value(text: str) -> str:
    return text or "empty"
