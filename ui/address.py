"""The address of the page tells what it shows: ?tab=chat&run=3&conversation=12.

It follows what is chosen, so that a reload, a bookmark and a second window show the same. Opening one chooses the tab,
the run and the conversation, or puts the question of a shared link into the message box. Whatever in it makes no sense
is left out and said in a sentence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, in_places
from ui.chat import share
from ui.chat.history import History
from ui.header import NO_RUN, Header, choices
from ui.html import notice
from ui.requests import LARGEST, Question
from upq.errors import UserError, shown

#: Writes the page's own parameters into the address and leaves Gradio's, such as __theme, alone. The question of a
#: shared link stays until a conversation has begun.
WRITE = f"""watch('value', () => {{
  const own = new URLSearchParams(props.value), query = new URLSearchParams(location.search);
  const begun = own.has('conversation') ? {list(share.NAMES)} : [];
  for (const name of ['tab', 'run', 'conversation', ...begun]) query.delete(name);
  for (const [name, value] of own) query.set(name, value);
  history.replaceState(history.state, '', `${{location.pathname}}?${{query}}${{location.hash}}`);
}});"""


@dataclass(frozen=True)
class Place:
    """What an address names. problems: a sentence for each thing in it that makes no sense."""

    tab: str | None
    run: int | None
    conversation: int | None
    question: Question | None
    problems: tuple[str, ...]


def place_of(parameters: Mapping[str, str], tabs: list[str]) -> Place:
    """Read an address. Numbers are not looked up here."""
    problems: list[str] = []

    def number(name: str) -> int | None:
        text = parameters.get(name, "")
        if not text:
            return None
        if re.fullmatch(r"\d{1,19}", text, re.ASCII) and int(text) <= LARGEST:
            return int(text)
        problems.append(f"{name} is {shown(text)}; expected a number.")
        return None

    tab = parameters.get("tab") or None
    if tab is not None and tab not in tabs:
        problems.append(f"tab is {shown(tab)}; expected one of {', '.join(tabs)}.")
        tab = None
    question = None
    try:
        question = share.question_of(parameters)
    except UserError as error:
        problems.append(f"{error.message} {error.hint}".strip())
    return Place(tab, number("run"), number("conversation"), question, tuple(problems))


def query_of(tab: str, run: int | None, conversation: int | None) -> str:
    """The parameters of what a page shows."""
    values = {"tab": tab, "run": run, "conversation": conversation}
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


def names_a_tab(request: gr.Request, tabs: gr.Tabs) -> bool:
    """Whether the address of a page that was just opened names one of its tabs."""
    return (
        place_of(dict(request.query_params), [str(tab.id) for tab in _each(tabs)]).tab is not None
    )


def _each(tabs: gr.Tabs) -> list[gr.Tab]:
    return [tab for tab in tabs.children if isinstance(tab, gr.Tab)]


def build(app: App, demo: gr.Blocks, tabs: gr.Tabs, header: Header, history: History) -> None:
    """Wire the address. Must be called inside `demo`, behind the tabs."""
    names = [str(tab.id) for tab in _each(tabs)]
    has_arrived = gr.State(False)
    address = gr.HTML("", visible="hidden", js_on_load=WRITE, elem_id="address")
    composer = history.chat.composer

    filled = [tabs, header.tab, header.chosen, header.selector, history.wanted, history.note]
    filled += [composer.problem, composer.message, *composer.settings, has_arrived]

    def arrive(request: gr.Request) -> list[Any]:
        place = place_of(dict(request.query_params), names)
        problems = list(place.problems)
        values: dict[Any, Any] = {has_arrived: True}
        if place.tab:
            values |= {tabs: gr.Tabs(selected=place.tab), header.tab: place.tab}
        if place.conversation is None:  # else it comes with a run of its own
            selection, problem = _choose(app, place.run)
            values |= dict(zip([header.chosen, header.selector], selection, strict=True))
            problems += [problem] if problem else []
        if place.conversation is not None:
            values[history.wanted] = (place.conversation, time.time())
        elif place.question:
            asked = place.question.model_dump()
            values[composer.message] = asked.pop("message")
            fitting, misfits = _fitting(composer.settings, list(asked.values()))
            values |= fitting
            problems += misfits
            values[history.note] = _arrived(place.question)
        if problems:
            words = f"Left out of this address: {' '.join(problems)}"
            values[composer.problem] = notice("failed", words)
        return in_places(filled, values)

    demo.load(arrive, None, filled, **IN_ORDER)
    for tab in _each(tabs):
        tab.select(partial(str, tab.id), None, header.tab, **PRIVATE)

    def follow(has_arrived: bool, *shown: Any) -> Any:
        """The address is read before it is written."""
        return query_of(*shown) if has_arrived else gr.skip()

    seen = [has_arrived, header.tab, header.chosen, history.opened]
    changes = [state.change for state in seen]
    gr.on(changes, follow, seen, address, trigger_mode="always_last", **PRIVATE)


def _choose(app: App, run_id: int | None) -> tuple[tuple[Any, Any], str]:
    """Values for the header's choice of a run, and what stands against the one that an address names."""
    if run_id in (None, NO_RUN) or app.precisions(run_id):
        return choices(app, run_id), ""
    return choices(app, None), f"run {run_id} is not here, or has no models."


def _fitting(settings: list[Any], values: list[Any]) -> tuple[dict[Any, Any], list[str]]:
    """The values that the page's own controls take, and a sentence for each other one."""
    fitting, misfits = {}, []
    for setting, value in zip(settings, values, strict=True):
        most = getattr(setting, "maximum", None)
        if most is not None and value > most:
            misfits.append(f"{setting.label} is {value}; the page takes at most {most}.")
        else:
            fitting[setting] = value
    return fitting, misfits


def _arrived(question: Question) -> Any:
    words = "The question of this link is in the message box; nothing was sent."
    exact = "Greedy answers come out exactly the same with the same run on the same machine."
    return notice("empty", words, "" if question.temperature else exact)
