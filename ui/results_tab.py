"""Results: every artifact and baseline side by side, size against quality, and the table as CSV."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ui import render, render_results
from ui.app_state import PRIVATE, App
from ui.chat_turn import speed_key
from ui.checks_tab import results_of
from ui.header import Header
from ui.render_results import ResultRow
from ui.words import model_name
from upq.checks import Totals, totals
from upq.store import Run

CSV_NAME = "upq-results.csv"


def build(app: App, header: Header) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    with gr.Column(elem_classes="card", elem_id="scatter"):
        chart = gr.HTML()
    with gr.Column(elem_classes="card"):
        gr.HTML(render.panel_title("Runs and artifacts"))
        table = gr.HTML(elem_id="results-table")
        download = gr.DownloadButton("Download CSV", size="sm", visible=False, elem_id="csv")
    header.catalog.change(partial(_show, app), None, [chart, table, download], **PRIVATE)


def _show(app: App) -> Any:
    rows = result_rows(app)
    path = app.export_dir / CSV_NAME
    path.write_text(render_results.csv_text(rows), encoding="utf-8")
    return (
        render_results.size_against_quality(rows),
        render_results.results_table(rows),
        gr.update(value=str(path), visible=bool(rows)),
    )


def result_rows(app: App) -> list[ResultRow]:
    """One row an artifact or baseline, newest run first."""
    runs = {run.id: run for run in app.store.runs(kind="quantize")}
    checks = _newest_checks(app)
    rows = [
        _row(app, runs[measured["run_id"]], measured, checks)
        for measured in app.store.measurements()
        if measured["run_id"] in runs
    ]
    return sorted(rows, key=lambda row: -row.run)


def _row(
    app: App, run: Run, measured: dict[str, Any], checks: dict[tuple[int, str], Totals]
) -> ResultRow:
    label, precision = measured["label"], measured["precision"]
    score = checks.get((run.id, label))
    speed = app.store.note(speed_key(run.id, precision, run.model)) if label == precision else None
    return ResultRow(
        run=run.id,
        model=model_name(run.model),
        method=run.method,
        preset=run.preset,
        label=label,
        precision=precision,
        size_bytes=measured["size_bytes"],
        bits_per_weight=measured["bits_per_weight"],
        kl=measured["kl"],
        kl_p95=measured["kl_p95"],
        top1=measured["top1"],
        ppl=measured["ppl"],
        prompt_strict=score.prompt_strict if score else None,
        prompts_checked=score.n if score else None,
        tokens_per_s=speed,
        run_seconds=run.ended_at - run.started_at if run.ended_at and run.started_at else None,
        tokens=measured["tokens"],
        seed=run.config["seed"],
    )


def _newest_checks(app: App) -> dict[tuple[int, str], Totals]:
    """(run id, precision) -> scores of its newest finished check."""
    found: dict[tuple[int, str], Totals] = {}
    for check in app.store.runs(kind="check"):
        if check.state != "done" or check.parent_id is None:
            continue
        for precision, results in results_of(app, check.id).items():
            found.setdefault((check.parent_id, precision), totals(results))
    return found
