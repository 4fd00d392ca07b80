"""What stands in a form comes back when the page is loaded again: the browser keeps it, and nobody else.

A page writes its forms into the browser's own storage as they change, without asking the server. When a page is opened
the browser tells what it has kept, and what still fits is put back; all else is left out, without a word. (Gradio's
BrowserState does the like with an encryption whose key stands in the page, for a tenth of what a first visit takes.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE
from ui.requests import LARGEST, MAX_MESSAGE

#: Where the browser keeps the form of a name.
KEY = "upq-draft-"
#: Longest draft that is sent when a page is opened, characters; whatever is longer was not written by a form of ours.
LONGEST = 200_000


@dataclass(frozen=True)
class Found:
    """What a browser has kept of a form, and the page that is opened.

    values: of the fields whose values still fit, by name; kept: all of them; conversation: the number of the one that
    was open then, or ""; address: the parameters of the page's address now.
    """

    values: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    conversation: str = ""
    address: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A form that the browser remembers under a name.

    fields: its components by name; outputs: those that are put back; restore: their values.
    """

    name: str
    fields: Mapping[str, Any]
    outputs: list[Any]
    restore: Callable[[Found], list[Any]]


def build(demo: gr.Blocks, drafts: Sequence[Draft]) -> None:
    """Put back what the browser has kept when a page is opened, and keep what changes from then on."""
    told = gr.HTML("", visible="hidden")  # stands for what the browser tells

    def restore(text: str, request: gr.Request) -> list[Any]:
        kept, address = _object(text), dict(request.query_params)
        found = [draft.restore(found_in(kept.get(draft.name), draft, address)) for draft in drafts]
        return list(chain.from_iterable(found))

    outputs = list(chain.from_iterable(draft.outputs for draft in drafts))
    names = [draft.name for draft in drafts]
    restored = demo.load(restore, told, outputs, js=_reading(names), **IN_ORDER)
    restored.then(None, js="() => { window.draftsAreBack = true; return []; }", **PRIVATE)
    for draft in drafts:
        fields = list(draft.fields.values())
        changes = [component.change for component in fields]
        gr.on(changes, None, fields, js=_keeping(draft), **PRIVATE)


def _reading(names: Sequence[str]) -> str:
    """What the browser does to tell what it has kept. It may forbid that, as in a page inside of another site's."""
    return f"""() => {{
  const kept = {{}};
  try {{
    for (const name of {json.dumps(names)}) kept[name] = localStorage.getItem('{KEY}' + name) ?? '';
  }} catch {{ return ['']; }}
  const text = JSON.stringify(kept);
  return [text.length > {LONGEST} ? '' : text];
}}"""


def _keeping(draft: Draft) -> str:
    """What the browser does when a field has changed. Before the draft is back nothing may take its place."""
    return f"""(...values) => {{
  if (!window.draftsAreBack) return [];
  const kept = {{}};
  {json.dumps(list(draft.fields))}.forEach((name, at) => {{ kept[name] = values[at]; }});
  const conversation = new URLSearchParams(location.search).get('conversation') ?? '';
  const text = JSON.stringify({{ kept, conversation }});
  try {{ localStorage.setItem('{KEY}{draft.name}', text); }} catch {{ /* the browser keeps nothing */ }}
  return [];
}}"""


def found_in(text: Any, draft: Draft, address: Mapping[str, str]) -> Found:
    """Read what a browser has kept of a form with distrust: anybody can write into its storage."""
    whole = _object(text)
    kept = whole.get("kept")
    kept = kept if isinstance(kept, dict) else {}
    fitting = {
        name: kept[name]
        for name, component in draft.fields.items()
        if name in kept and fits(component, kept[name])
    }
    conversation = whole.get("conversation")
    return Found(fitting, kept, conversation if isinstance(conversation, str) else "", address)


def _object(text: Any) -> dict[str, Any]:
    """The JSON object that a text is; an empty one for all else."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def fits(component: Any, value: Any) -> bool:
    """Whether a component can hold a value as it is offered now."""
    if isinstance(component, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(component, gr.Radio):
        return value in [choice for _, choice in component.choices]
    if isinstance(component, gr.CheckboxGroup):
        choices = [choice for _, choice in component.choices]
        return isinstance(value, list) and all(one in choices for one in value)
    if isinstance(component, gr.Slider | gr.Number):
        return is_number(value, component.minimum, component.maximum)
    return isinstance(value, str) and len(value) <= (component.max_length or MAX_MESSAGE)


def is_number(value: Any, low: float | None, high: float | None) -> bool:
    """Whether a value is a number within bounds; None stands for the largest that anything here takes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (-LARGEST if low is None else low) <= value <= (LARGEST if high is None else high)
