"""The history: all quantizations, a search through them, and what can be done with each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from ui.app_state import PRIVATE, App
from ui.header import CLICKS, Header, clicked_run, given_text
from ui.html import parts
from ui.quantize import form as run_form
from ui.quantize import render_history
from ui.quantize.panel import NEWEST, Choice
from upq.errors import UserError
from upq.store import Labels, RunState, Wanted

ANY_STATE = "any state"


@dataclass
class History:
    """The table, the line above it, and the components that say which runs are looked for."""

    message: gr.HTML
    text: gr.Textbox
    state: gr.Dropdown
    starred: gr.Checkbox
    table: gr.HTML

    @property
    def filters(self) -> list[Any]:
        """The components whose values `_table` takes."""
        return [self.text, self.state, self.starred]


def lay_out() -> History:
    """Lay out the history. Must be called inside a gr.Blocks."""
    gr.HTML(parts.panel_title("History"))
    with gr.Row(elem_id="history-filters"):
        text = gr.Textbox(
            label="Search",
            placeholder="words of name, note, model, method, preset, or #number",
            min_width=200,
            scale=3,
            max_lines=1,
            elem_id="history-search",
        )
        states = [ANY_STATE, *get_args(RunState)]
        state = gr.Dropdown(
            states, value=ANY_STATE, label="State", min_width=120, elem_id="history-state"
        )
        starred = gr.Checkbox(label="starred only", min_width=110, elem_id="history-starred")
    message = gr.HTML(elem_id="history-message")
    table = gr.HTML(js_on_load=CLICKS, elem_id="history")
    return History(message, text, state, starred, table)


def wire(
    app: App, header: Header, form: run_form.RunForm, history: History, choice: Choice
) -> None:
    """Fill the table, now and whenever the catalog or the search changes, and let its buttons act."""
    again = gr.State((0, 0.0))

    def act(event: gr.EventData) -> Any:
        action, run_id = clicked_run(event)
        try:
            return _act(app, action, run_id, given_text(event))
        except UserError as error:
            return parts.notice("failed", error.message, error.hint), gr.skip(), gr.skip()

    def refill(request: tuple[int, float]) -> Any:
        return run_form.values_of(form, run_form.config_of_run(app.store.run(request[0]).config))

    def fill(text: str, state: str, starred: bool) -> Any:
        return _table(app, text, state, starred)

    history.table.click(act, None, [history.message, choice.shown, again], **PRIVATE)
    again.change(refill, again, form.outputs, **PRIVATE)
    changes = [
        header.catalogs["quantize"].change,
        history.text.change,
        history.state.change,
        history.starred.change,
    ]
    gr.on(changes, fill, history.filters, history.table, trigger_mode="always_last", **PRIVATE)


def _act(app: App, action: str, run_id: int, text: str) -> tuple[Any, Any, Any]:
    """Carry out a button of the history; return a message, the run to show and the run to start from."""
    run = app.store.run(run_id)
    if action == "resume":
        return parts.notice("done", app.store.resume(run.id)), run.id, gr.skip()
    if action == "delete":
        app.store.delete(run.id)
        return parts.notice("done", f"Run #{run.id} is deleted."), NEWEST, gr.skip()
    if action == "again":
        app.admit_run(run_form.config_of_run(run.config))
        words = f"The form holds the settings of run #{run.id}."
        return parts.notice("done", words, "Press Start."), gr.skip(), (run.id, time.time())
    if action == "star":
        app.store.label(run.id, Labels(starred=not run.starred))
        return "", gr.skip(), gr.skip()
    if action == "name":
        app.store.label(run.id, Labels(name=text))
        return "", gr.skip(), gr.skip()
    return "", run.id, gr.skip()


def _table(app: App, text: str, state: str, starred: bool) -> Any:
    kept: Any = state if state in get_args(RunState) else None
    wanted = Wanted(kind="quantize", text=text or "", state=kept, starred=bool(starred))
    fidelity = {
        (row["run_id"], row["label"]): row["kl"]
        for row in app.store.measurements()
        if row["label"] == row["precision"]
    }
    is_filtered = wanted != Wanted(kind="quantize")
    return render_history.history_table(app.store.search(wanted), fidelity, is_filtered=is_filtered)
