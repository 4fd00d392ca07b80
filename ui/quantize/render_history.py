"""From runs to the HTML of the history and of the line below Start: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ui.html import Html, duration, fixed, join, notice, run_name, table, tag
from upq.store import Run

STATE_MARKS = {
    "queued": "○ queued",
    "running": "◐ running",
    "done": "● done",
    "failed": "✗ failed",
    "cancelled": "\u2013 cancelled",
    "interrupted": "! interrupted",
}
#: Of a run that no worker here ever held: it shipped with the app or was unpacked from a file.
MADE_ELSEWHERE = (
    "It was not made here and does not come back by itself: what ships with the app is in every new data folder,"
    " and what was unpacked is in its file. `python -m upq pack` keeps it."
)


def started_line(run: Run, position: int) -> Html:
    """Tell what became of the run that this page started, as it is now."""
    name = f"#{run.id}"
    if run.aside_for is not None and run.state != "done":
        return notice("busy", f"{name} steps aside for check #{run.aside_for}, goes on afterwards.")
    if run.state == "queued":
        return notice("empty", f"{name} is queued, number {position}.", "It starts by itself.")
    if run.state == "running":
        stopping = f"{name} stops at its next safe point."
        return notice("busy", stopping if run.cancel_requested else f"{name} started.")
    if run.state == "failed":
        return notice("failed", f"{name} failed: {run.error_message}", run.error_hint)
    words = {
        "done": f"{name} is done.",
        "cancelled": f"{name} is cancelled.",
        "interrupted": f"{name} was interrupted and goes on by itself.",
    }
    return notice("done" if run.state == "done" else "empty", words[run.state])


def history_table(
    runs: Sequence[Run], fidelity: Mapping[tuple[int, str], float], *, is_filtered: bool = False
) -> Html:
    """Draw quantize runs with their actions. fidelity holds the mean KL of each (run id, precision)."""
    if not runs:
        words = "No run fits the search." if is_filtered else "Finished runs are listed here."
        return notice("empty", words)
    head = ("run", "state", "KL INT4", "KL INT2", "time", "actions")
    rows = [_history_row(run, fidelity) for run in runs]
    return table(head, rows, numeric=(2, 3, 4), class_="history")


def _history_row(run: Run, fidelity: Mapping[tuple[int, str], float]) -> list[object]:
    taken = run.worked_s if run.started_at and run.ended_at else None
    return [
        _title(run),
        tag("span", STATE_MARKS[run.state], class_=f"state {run.state}"),
        fixed(fidelity.get((run.id, "INT4")), 3),
        fixed(fidelity.get((run.id, "INT2")), 3),
        duration(taken),
        tag("span", *_actions(run), class_="actions"),
    ]


def _title(run: Run) -> Html:
    """Draw the star of a run, what it is, and its name and note, of which the name can be changed here."""
    star = tag(
        "button",
        "★" if run.starred else "☆",
        class_="star",
        aria_pressed=str(run.starred).lower(),
        aria_label=f"star run {run.id}",
        data_action="star",
        data_run=run.id,
    )
    rename = tag(
        "button",
        run.name or "name it",
        class_="link rename" if run.name else "link rename unnamed",
        aria_label=f"name of run {run.id}: {run.name or 'none'}",
        data_action="name",
        data_run=run.id,
        data_ask=f"Name of run {run.id}",
        data_text=run.name,
        dir="auto",
    )
    note = tag("small", run.note, class_="run-note", dir="auto") if run.note else None
    return join([star, " ", tag("b", run_name(run)), " ", rename, note])


def _actions(run: Run) -> list[Html]:
    actions = ["open", "again"]
    if run.state in ("failed", "cancelled", "interrupted"):
        actions.insert(1, "resume")
    if run.state not in ("running", "queued"):
        actions.append("delete")
    return [
        tag(
            "button",
            action,
            class_="small",
            aria_label=f"{action} run {run.id}",
            data_action=action,
            data_run=run.id,
            data_confirm=_warning(run) if action == "delete" else None,
        )
        for action in actions
    ]


def _warning(run: Run) -> str:
    words = f"Delete run {run.id} with its artifacts, checks and votes? This cannot be undone."
    is_from_elsewhere = run.state == "done" and run.attempt == 0
    return f"{words} {MADE_ELSEWHERE}" if is_from_elsewhere else words
