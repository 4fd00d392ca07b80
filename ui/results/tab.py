"""Results: chosen runs side by side in charts, settings and a table, as CSV and as a report to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, Outputs
from ui.header import Header
from ui.html import METHOD_NAMES, PRECISIONS, Html, parts
from ui.results import comparison, render, render_compare, render_report, votes
from ui.results.comparison import MAX_RUNS, ResultRow, Subject
from ui.results.shared_rows import filtered, merged

#: A click on the head of a column sorts the table by it; empty cells stay at the end.
SORT = """element.addEventListener('click', (event) => {
  const head = event.target.closest('th:has(button.sort)');
  if (!head) return;
  const rising = head.ariaSort !== 'ascending';
  for (const other of head.parentElement.children) other.ariaSort = null;
  head.ariaSort = rising ? 'ascending' : 'descending';
  const body = head.closest('table').tBodies[0];
  const key = (row) => row.cells[head.cellIndex].dataset.key ?? '';
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  const rows = [...body.rows].sort((row, other) => {
    const [a, b] = [key(row), key(other)];
    if (a === '' || b === '') return (a === '') - (b === '');
    return rising ? compare(a, b) : compare(b, a);
  });
  body.append(...rows);
});"""
MEASURE_CHOICES = [
    ("KL", "kl"),
    ("top-1", "top1"),
    ("perplexity", "ppl"),
    ("WikiText-2", "wikitext2"),
    ("MMLU", "mmlu"),
    ("IFEval", "ifeval"),
    ("built-in checks", "builtin"),
]


@dataclass
class Page(Outputs):
    """What the chosen runs fill. The controls among these keep their values where they can."""

    note: gr.HTML
    models: gr.CheckboxGroup
    methods: gr.CheckboxGroup
    precisions: gr.CheckboxGroup
    table: gr.HTML
    scatter: gr.HTML
    minutes: gr.HTML
    blocks: gr.HTML
    series: gr.Dropdown
    overlay: gr.HTML
    first: gr.Dropdown
    second: gr.Dropdown
    differences: gr.HTML
    origins: gr.HTML
    csv: gr.DownloadButton
    report: gr.DownloadButton


@dataclass(frozen=True)
class Controls:
    """What a reader has set beside the runs: what is set against size, the filters, a curve, and two runs."""

    measure: str
    models: Sequence[str] | None
    methods: Sequence[str] | None
    precisions: Sequence[str] | None
    series: str | None
    first: int | None
    second: int | None


def build(app: App, header: Header) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    chosen = gr.State(None)  # run ids; None until somebody chooses: the newest ones
    with gr.Row(elem_classes="card", elem_id="compare"):
        selector = gr.Dropdown(
            [], multiselect=True, max_choices=MAX_RUNS, label=f"Runs to compare, up to {MAX_RUNS}",
            elem_id="compare-runs", scale=5,
        )  # fmt: skip
        report = gr.DownloadButton("Download report", size="sm", visible=False, elem_id="report")
        csv = gr.DownloadButton("Download CSV", size="sm", visible=False, elem_id="csv")
    note = gr.HTML()
    with gr.Column(elem_classes="card", elem_id="results"):
        gr.HTML(parts.panel_title("Runs and artifacts"))
        with gr.Row(elem_id="result-filters"):
            models, methods, precisions = (
                gr.CheckboxGroup([], label=label, info="none: all", visible=False, min_width=180)
                for label in ("Model", "Method", "Precision")
            )
        table = gr.HTML(js_on_load=SORT, elem_id="results-table")
    with gr.Column(elem_classes="card", elem_id="scatter"):
        measure = gr.Radio(MEASURE_CHOICES, value="kl", label="Quality", elem_id="measure")
        scatter = gr.HTML()
    with gr.Column(elem_classes="card"):
        minutes = gr.HTML(elem_id="kl-minutes")
    with gr.Column(elem_classes="card"):
        blocks = gr.HTML(elem_id="blocks")
    with gr.Column(elem_classes="card", elem_id="overlay"):
        series = gr.Dropdown([], label="Curve", elem_id="series")
        overlay = gr.HTML()
    with gr.Column(elem_classes="card", elem_id="differences"):
        gr.HTML(parts.panel_title("Settings that differ"))
        with gr.Row():
            first = gr.Dropdown([], label="Run", min_width=200)
            second = gr.Dropdown([], label="and run", min_width=200)
        differences = gr.HTML()
    with gr.Column(elem_classes="card"):
        gr.HTML(parts.panel_title("Where the results come from"))
        origins = gr.HTML(elem_id="origins")
    votes.build(app, header, chosen)
    page = Page(
        note=note,
        models=models,
        methods=methods,
        precisions=precisions,
        scatter=scatter,
        minutes=minutes,
        blocks=blocks,
        series=series,
        overlay=overlay,
        first=first,
        second=second,
        differences=differences,
        origins=origins,
        table=table,
        csv=csv,
        report=report,
    )
    _wire(app, header, chosen, selector, measure, page)


def _wire(
    app: App, header: Header, chosen: gr.State, selector: gr.Dropdown, measure: gr.Radio, page: Page
) -> None:
    selector.input(lambda ids: ids, selector, chosen, trigger_mode="always_last", **IN_ORDER)
    header.catalogs["results"].change(partial(_choices, app), chosen, selector, **IN_ORDER)
    kept = [page.models, page.methods, page.precisions]
    inputs = [chosen, measure, *kept, page.series, page.first, page.second]
    gr.on(
        [header.catalogs["results"].change, chosen.change],
        partial(_show, app),
        inputs,
        page.outputs,
        trigger_mode="always_last",
        **PRIVATE,
    )
    gr.on(
        [measure.input, *(filter_.input for filter_ in kept)],
        partial(_filtered, app),
        [chosen, measure, *kept],
        [page.table, page.scatter],
        trigger_mode="always_last",
        **PRIVATE,
    )
    page.series.input(partial(_overlay, app), [chosen, page.series], page.overlay, **PRIVATE)
    gr.on(
        [page.first.input, page.second.input],
        partial(_differences, app),
        [page.first, page.second],
        page.differences,
        **PRIVATE,
    )


def _subjects(app: App, chosen: Sequence[int] | None) -> list[Subject]:
    ids = comparison.newest(comparison.comparable(app.store)) if chosen is None else chosen
    return comparison.gather(app.store, ids)


def _choices(app: App, chosen: Sequence[int] | None) -> Any:
    runs = comparison.comparable(app.store)
    comparable_ids = {run.id for run in runs}
    kept = (
        comparison.newest(runs)
        if chosen is None
        else [run_id for run_id in chosen if run_id in comparable_ids]
    )
    choices = [(f"{parts.run_name(run)} {run.name}".strip(), run.id) for run in runs]
    return gr.update(choices=choices, value=kept)


def _show(app: App, chosen: Sequence[int] | None, *controls: Any) -> list[Any]:
    """Draw the chosen runs, once for all pages that have chosen the same."""
    runs = None if chosen is None else tuple(chosen)
    key = ("results", app.store.latest_revision(), runs, repr(controls))
    return app.shared.get(key, lambda: _drawn(app, runs, Controls(*controls)))


def _drawn(app: App, chosen: Sequence[int] | None, controls: Controls) -> list[Any]:
    subjects = _subjects(app, chosen)
    rows = _rows(subjects)
    offered = {
        "models": list(dict.fromkeys(row.model for row in rows)),
        "methods": list(dict.fromkeys(row.method for row in rows if row.method)),
        "precisions": [name for name in PRECISIONS if any(row.precision == name for row in rows)],
    }
    wanted = {
        name: [value for value in getattr(controls, name) or () if value in values]
        for name, values in offered.items()
    }
    listed = filtered(rows, **wanted)
    curves = render_compare.series_choices(subjects)
    known = [name for _, name in curves]
    curve = controls.series if controls.series in known else next(iter(known), None)
    ids = [subject.run.id for subject in subjects]
    pair = (_kept(controls.first, ids, 0), _kept(controls.second, ids, -1))
    names = [(parts.run_name(subject.run), subject.run.id) for subject in subjects]
    return Page.fill(
        note=render_compare.remarks(subjects),
        **{
            name: gr.update(choices=_named(values), value=wanted[name], visible=len(values) > 1)
            for name, values in offered.items()
        },
        table=render.filtered_table(rows, listed),
        scatter=render.size_against_quality(listed, controls.measure),
        minutes=render_compare.kl_over_minutes(subjects),
        blocks=render_compare.all_block_errors(subjects),
        series=gr.update(choices=curves, value=curve, visible=bool(curves)),
        overlay=render_compare.overlay(subjects, curve or ""),
        first=gr.update(choices=names, value=pair[0], visible=len(ids) > 1),
        second=gr.update(choices=names, value=pair[1], visible=len(ids) > 1),
        differences=_differences(app, *pair),
        origins=render_compare.origins(subjects),
        csv=_download(app, "csv", ids, render.rows_as_csv(rows), bool(rows)),
        report=_download(app, "html", ids, render_report.report(subjects), bool(rows)),
    )


def _kept(chosen: int | None, ids: Sequence[int], place: int) -> int | None:
    """Return the run that was chosen, if it still takes part, else the one at this place."""
    return chosen if chosen in ids else next(iter(ids[place:]), None)


def _download(app: App, kind: str, ids: Sequence[int], text: str, visible: bool) -> Any:
    path = app.own_folder() / f"upq-runs-{'-'.join(map(str, ids)) or 'none'}.{kind}"
    path.write_text(text, encoding="utf-8")
    return gr.update(value=str(path), visible=visible)


def _rows(subjects: Sequence[Subject]) -> list[ResultRow]:
    return merged([row for subject in subjects for row in subject.rows])


def _named(values: Sequence[str]) -> list[tuple[str, str]]:
    return [(METHOD_NAMES.get(value, value), value) for value in values]


def _filtered(
    app: App, chosen: Sequence[int] | None, measure: str, *wanted: Sequence[str]
) -> tuple[Html, Html]:
    rows = _rows(_subjects(app, chosen))
    listed = filtered(rows, *wanted)
    return render.filtered_table(rows, listed), render.size_against_quality(listed, measure)


def _overlay(app: App, chosen: Sequence[int] | None, series: str) -> Html:
    return render_compare.overlay(_subjects(app, chosen), series)


def _differences(app: App, first: int | None, second: int | None) -> Html:
    if first is None or second is None or first == second:
        return render_compare.one_run_only()
    pair = {subject.run.id: subject for subject in comparison.gather(app.store, [first, second])}
    return render_compare.differences(pair[first], pair[second]) if len(pair) == 2 else Html()
