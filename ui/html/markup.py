"""Markup that is escaped by construction.

`tag` builds an element; whatever is not already `Html` is escaped on the way in, so text from a model,
a file or a person can never become markup. Characters that a browser hides or uses to reorder text
are made visible. No other file of the app writes angle brackets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import markupsafe

VOID_TAGS = frozenset({"br", "hr", "input", "meta"})
#: Joiners that ordinary scripts and emoji need.
_HARMLESS = frozenset("\n\t\u200c\u200d")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Html(markupsafe.Markup):
    """Text that is markup already. What is added, joined or formatted into it is escaped by `escape`."""

    __slots__ = ()

    @classmethod
    def escape(cls, value: object, /) -> Html:
        """Return the value as markup: Html stays, everything else is shown as plain text."""
        return value if isinstance(value, Html) else cls(markupsafe.escape(visible(str(value))))


def visible(text: str) -> str:
    """Replace control, bidirectional and other hidden characters by e.g. ⟨U+202E⟩."""
    text = text.replace("\r\n", "\n")
    if text.replace("\n", " ").isprintable():  # nothing to look for, as nearly always
        return text
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in _HARMLESS or unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    return f"\u27e8U+{ord(character):04X}\u27e9"


def escape(value: object) -> Html:
    """Return the value as markup: Html stays, everything else is shown as plain text."""
    return Html.escape(value)


def join(children: Iterable[object], separator: object = "") -> Html:
    """Put children one after another; None is left out."""
    return escape(separator).join(escape(child) for child in children if child is not None)


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Build an element. `class_` becomes class, `data_run` data-run; None and False leave one out."""
    rendered = "".join(
        _attribute(key, value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    opening = f"<{name}{rendered}>"
    return Html(opening if name in VOID_TAGS else f"{opening}{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    """Write an attribute. Markup is no value of one, so Html is escaped as well."""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
