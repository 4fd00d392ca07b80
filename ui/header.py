"""The header on every tab, and the heartbeat of the page.

A timer asks once a second for a number that grows with every change of any run. Only when it grew do
the tabs read anything: what moves during a run hangs on `revision`, lists and columns on `catalog`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App
from ui.html import model_name, parts

NO_RUN = 0
POLL_S = 1.0
CLICKS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  const { action, run } = button.dataset;
  if (action === 'delete' && !confirm(`Delete run ${run} with its artifacts?`)) return;
  trigger('click', { action, run });
});"""


@dataclass
class Header:
    """What the tabs listen to: the chosen run, any change, and changes of what exists.

    chosen holds a run id, NO_RUN for FP16 alone, or None until there is something to choose. It is apart from
    the selector, because Gradio refuses an event whose selector was refilled meanwhile.
    """

    chosen: gr.State
    selector: gr.Dropdown
    status: gr.HTML
    revision: gr.State
    catalog: gr.State


def build(app: App) -> Header:
    """Lay out the header. Must be called inside a gr.Blocks."""
    with gr.Row(elem_id="header"):
        gr.HTML(parts.brand(), min_width=130, elem_id="brand")
        selector = gr.Dropdown(
            [(f"{model_name('bundled')} · no run yet", NO_RUN)],
            value=NO_RUN,
            label="Run for Chat and Checks",
            show_label=False,
            container=False,
            min_width=250,
            scale=2,
            elem_id="run-selector",
        )
        status = gr.HTML(js_on_load=CLICKS, min_width=300, elem_id="status")
    header = Header(gr.State(None), selector, status, gr.State(""), gr.State(""))
    timer = gr.Timer(POLL_S)
    timer.tick(lambda seen: _poll(app, seen), header.revision, header.revision, **PRIVATE)
    header.revision.change(
        lambda seen: _refresh(app, seen), header.catalog, [status, header.catalog], **PRIVATE
    )
    both = [header.chosen, selector]
    header.catalog.change(lambda chosen: _choices(app, chosen), header.chosen, both, **IN_ORDER)
    selector.input(
        lambda value: value, selector, header.chosen, trigger_mode="always_last", **IN_ORDER
    )
    return header


def load(app: App, header: Header, demo: gr.Blocks) -> None:
    """Fill a page that was just opened; a live run is picked up where it is."""
    demo.load(lambda: _state(app), None, header.revision, **PRIVATE)


def clicked_run(event: gr.EventData) -> tuple[str, int]:
    """Return the action and run id of a click on a rendered button, and ("", 0) for anything else."""
    data: Any = event._data
    run = str(data.get("run", "")) if isinstance(data, dict) else ""
    if not re.fullmatch("[0-9]{1,19}", run):
        return "", 0
    return str(data.get("action", "")), int(run)


def _state(app: App) -> str:
    return f"{app.store.latest_revision()} {app.supervisor.status()['alive']}"


def _poll(app: App, seen: str) -> Any:
    state = _state(app)
    return gr.skip() if state == seen else state


def _refresh(app: App, seen: str) -> tuple[Any, Any]:
    runs = app.store.runs()
    waiting = sum(run.state == "queued" for run in runs)
    live = next((run for run in runs if run.state == "running"), None)
    status = parts.status_line(app.device_line, live, waiting, app.supervisor.status()["alive"])
    artifacts = [(row.run_id, row.precision) for row in app.store.artifacts()]
    catalog = repr(([(run.id, run.state) for run in runs], artifacts))
    return status, gr.skip() if catalog == seen else catalog


def _choices(app: App, chosen: int | None) -> tuple[Any, Any]:
    """Offer the runs that left an artifact, newest first. Until somebody chooses, the newest one is taken."""
    artifacts = {row.run_id for row in app.store.artifacts()}
    runs = [run for run in app.store.runs(kind="quantize") if run.id in artifacts]
    if not runs:
        return None, gr.skip()
    keep = chosen is not None and chosen in {NO_RUN, *artifacts}
    value = chosen if keep else runs[0].id
    choices = [(parts.run_label(run), run.id) for run in runs]
    choices.append((f"{model_name('bundled')} · FP16 only", NO_RUN))
    return value, gr.update(choices=choices, value=value)
