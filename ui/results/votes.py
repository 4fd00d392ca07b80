"""The blind votes in Results: what those on the chosen runs say, and all of them as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App
from ui.header import Header
from ui.html import parts
from ui.results import comparison
from ui.results.render_votes import votes_table
from upq.evaluation import tallies
from upq.store import votes_csv


def build(app: App, header: Header, chosen: gr.State) -> None:
    """Lay out the section and wire it. chosen: the ids of the chosen runs, None for the newest ones."""
    with gr.Column(elem_classes="card", elem_id="votes"):
        gr.HTML(parts.panel_title("Blind votes"))
        table = gr.HTML(elem_id="votes-table")
        with gr.Row(elem_classes="buttons"):
            csv = gr.DownloadButton(
                "Download votes",
                size="sm",
                visible=False,
                scale=0,
                min_width=140,
                elem_id="votes-csv",
            )
    gr.on(
        [header.votes.change, header.catalogs["results"].change, chosen.change],
        partial(_show, app),
        chosen,
        [table, csv],
        trigger_mode="always_last",
        **PRIVATE,
    )


def _show(app: App, chosen: Sequence[int] | None) -> list[Any]:
    runs = comparison.comparable(app.store)
    ids = set(comparison.newest(runs) if chosen is None else chosen)
    names = {run.id: parts.run_label(run) for run in runs if run.id in ids}
    found = {run: tallies(outcomes) for run in names if (outcomes := app.store.votes.outcomes(run))}
    path = app.own_folder() / f"upq-votes-{'-'.join(map(str, sorted(found))) or 'none'}.csv"
    if found:
        text = votes_csv(vote for run in sorted(found) for vote in app.store.votes.of(run))
        path.write_text(text, encoding="utf-8")
    return [
        votes_table(names, found),
        gr.update(value=str(path) if found else None, visible=bool(found)),
    ]
