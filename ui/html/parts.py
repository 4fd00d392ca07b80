"""From rows of the store to the HTML of the header, and what all panels share: pure functions.

Every panel has four states drawn on purpose: empty says what to do next, busy says what and how long,
done shows the result, failed is one sentence and one action. `ui.html.markup.tag` escapes all that is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ui.html.clock import clock
from ui.html.markup import Html, join, tag
from ui.html.words import (
    BUNDLED_NAME,
    METHOD_NAMES,
    model_name,
    stage_name,
)
from upq.decode import ROWS
from upq.store import Run
from upq.units import NO_VALUE, percent


def notice(
    kind: Literal["empty", "busy", "done", "failed"],
    message: str,
    hint: object = "",
    *,
    is_told: bool = True,
) -> Html:
    """Draw one sentence and what to do about it. is_told: a screen reader says it when it appears."""
    marks = {"empty": "", "busy": "◐ ", "done": "✓ ", "failed": "✗ "}
    role = ("alert" if kind == "failed" else "status") if is_told else None
    hint_line = tag("p", hint, class_="hint") if hint else None
    return tag("div", tag("p", marks[kind], message), hint_line, class_=f"notice {kind}", role=role)


def unpacking(state: Literal["", "busy", "failed"], *, is_told: bool = True) -> Html | None:
    """Say what becomes of the models that ship with the app; None where there is nothing. is_told: see notice."""
    models = f"INT4 and INT2 of {BUNDLED_NAME}"
    if state == "busy":
        hint = "The columns in Chat open by themselves."
        busy = f"{models} are being unpacked: half a minute, longer on a busy machine."
        return notice("busy", busy, hint, is_told=is_told)
    if state == "failed":
        hint = "The terminal says why. Start a run in Quantize to make your own."
        failed = f"{models}, which ship with the app, could not be unpacked."
        return notice("failed", failed, hint, is_told=is_told)
    return None


def brand() -> Html:
    """Draw the product's name."""
    return tag("h1", "UPQ Studio", class_="brand")


def panel_title(text: str) -> Html:
    """Draw the heading of a panel."""
    return tag("h2", text)


def section_title(text: str) -> Html:
    """Draw a heading inside a form."""
    return tag("h3", text, class_="section")


def status_line(device: str, worker: Html | str, *, rests: bool) -> Html:
    """Draw the machine and what its worker does, as `worker_words` or a sentence on what keeps it from its work.

    rests: nothing is at work or waits, so the page has no reason to ask every second (ui.html.beat).
    """
    return tag(
        "div",
        tag("span", tag("em", "device"), device),
        tag("span", tag("em", "worker"), worker),
        class_="status-line",
        data_rests=rests,
    )


def worker_words(run: Run | None, waiting: int, is_ready: bool) -> Html:
    """Say what the worker does; the run is a link to its panel. is_ready: it has imported what it needs."""
    queue = f" · {waiting} waiting" if waiting else ""
    if run is None:
        idle = "idle" if is_ready else "starting: imports torch and transformers"
        return join([tag("i", class_="pulse off"), idle, queue])
    seconds = time_left(run)
    left = [", ", clock(seconds, "down"), " left"] if seconds is not None else []
    words = [f"run #{run.id}, {_doing(run)}", *left, queue]
    link = tag("button", *words, class_="link", data_action="open", data_run=run.id)
    return join([tag("i", class_="pulse"), link])


def _doing(run: Run) -> str:
    if run.kind == "check":
        return f"checks {percent(stage_share(run), 0)}"
    return f"{stage_name(run.stage or 'load')} {percent(stage_share(run), 0)}"


def stage_share(run: Run) -> float:
    """Return how much of the current stage is done, 0 to 1."""
    return min(1.0, run.stage_step / run.stage_total) if run.stage_total else 0.0


def time_left(run: Run) -> float | None:
    """Return the seconds left in the stage; of a check only once a whole batch of answers tells how long they take."""
    return None if run.kind == "check" and run.stage_step < ROWS else run.eta_s


def run_name(run: Run) -> str:
    """Identify a run in one line, such as "#4 UPQ · quick · SmolLM2-135M-Instruct"."""
    if run.kind == "check":
        return f"#{run.id} checks · {model_name(run.model)}"
    method = METHOD_NAMES.get(run.method, run.method)
    return f"#{run.id} {method} · {run.preset} · {model_name(run.model)}"


def run_label(run: Run) -> str:
    """Identify a run in one line that ends with the name that it was given, if any."""
    return " · ".join(filter(None, [run_name(run), run.name]))


def table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
    class_: str = "",
    keys: Sequence[Sequence[object]] = (),
) -> Html:
    """Draw a table that scrolls inside its own box; numeric columns are right-aligned.

    On a phone each row is a block without the cells that have no value, and a number carries the name of its column.
    keys holds what each cell is sorted by when the head of its column is clicked; without keys nothing can be clicked.
    """

    def title(column: int, name: object) -> Html:
        words = tag("button", name, class_="sort") if keys else name or unseen("actions")
        return tag("th", words, class_="number" if column in numeric else None, scope="col")

    def cell(row: int, column: int, value: object) -> Html:
        key = keys[row][column] if keys else None
        without = "nothing" if value == NO_VALUE else ""
        if column not in numeric:
            return tag("td", value, class_=without or None, data_key=key)
        kind = f"number {without}".strip()
        return tag("td", value, class_=kind, data_label=head[column], data_key=key)

    titles = tag("tr", *(title(column, name) for column, name in enumerate(head)))
    lines = [
        tag("tr", *(cell(row, column, value) for column, value in enumerate(values)))
        for row, values in enumerate(rows)
    ]
    whole = tag("table", tag("thead", titles), tag("tbody", *lines))
    return tag("div", whole, class_=f"grid-table {class_}".strip(), tabindex=0)


def unseen(text: str) -> Html:
    """Words for those who hear the page."""
    return tag("span", text, class_="unseen")


def fact(name: str, value: object, kind: str = "") -> Html:
    """Draw one named number of a list of facts; kind colours its name."""
    return tag("div", tag("dt", name, class_=kind), tag("dd", value))
