"""Checks: put a suite to the precisions (instruction checks, IFEval, MMLU, WikiText-2) and see the scores.

A check is a run like any other: the worker executes it, this tab shows what the store holds.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from ui import render, render_checks, render_run
from ui.app_state import PRIVATE, App
from ui.header import Header
from ui.render_checks import Filter
from ui.words import PRECISIONS
from upq import check_report, mmlu, wikitext
from upq.check_run import check_config
from upq.checks import builtin_suite, ifeval_suite, instruction_types
from upq.errors import UserError
from upq.store import Run
from upq.suite_data import local_copy


@dataclass(frozen=True)
class Amount:
    """How much of a suite to ask for; 0: all of it. hint: what that takes, with the bundled model on two cores."""

    label: str
    most: int
    usual: int
    hint: str


SUITES = [
    ("built-in", "builtin"),
    ("IFEval", "ifeval"),
    ("MMLU", "mmlu"),
    ("WikiText-2", "wikitext2"),
]
NAMES = {value: name for name, value in SUITES}
#: Reading runs at 600 to 1,200 tokens a second there (docs/results.md), writing 16 answers at a time not much slower.
AMOUNTS = {
    "builtin": Amount(
        "Prompts", 0, 0, "Our own short tasks. About a minute for each precision."
    ),
    "ifeval": Amount(
        "Prompts", 541, 541,
        "The published benchmark, 541 prompts. Several minutes for each precision; published scores"
        " allow answers of up to 1,280 tokens.",
    ),
    "mmlu": Amount(
        "Questions per subject", 100, 5,
        "57 subjects, five solved questions before each. 5 per subject take one to two minutes for"
        " each precision, 100 about a quarter of an hour. All 14,042: on the command line.",
    ),
    "wikitext2": Amount(
        "Chunks of 2,048 tokens", 200, 20,
        "Perplexity of the test split. 20 chunks take one to two minutes for each precision; the"
        " whole split has about 140, depending on the tokenizer.",
    ),
}  # fmt: skip
FILTERS = ("all", "flipped", "failed")
PAGE = 25
MAX_TOKENS = 512
NEWEST = 0


@dataclass
class Report:
    """What a check run shows, in the order that `_report` fills it."""

    summary: gr.HTML
    cancel: gr.Button
    resume: gr.Button
    totals: gr.HTML
    flips: gr.HTML
    types: gr.HTML
    prompts: gr.HTML
    more: gr.Button
    seen: gr.State

    @property
    def outputs(self) -> list[Any]:
        return list(vars(self).values())


def build(app: App, header: Header) -> None:
    """Lay out the tab and wire it. Must be called inside its gr.Tab."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320, elem_classes="card", elem_id="check-form"):
            gr.HTML(render.panel_title("Run checks"))
            form, start, started = _lay_out_form()
        with gr.Column(scale=7, min_width=400, elem_classes="card", elem_id="check-report"):
            selector = gr.Dropdown(
                [("newest", NEWEST)], value=NEWEST, label="Results of", elem_id="check-selector"
            )
            chosen = gr.State(NEWEST)
            summary = gr.HTML(elem_id="check-summary")
            with gr.Row(elem_classes="buttons"):
                cancel = gr.Button("Cancel", visible=False, size="sm", min_width=90)
                resume = gr.Button("Resume", visible=False, size="sm", min_width=90)
            totals = gr.HTML(elem_id="check-totals")
            flips = gr.HTML(elem_id="check-flips")
    with gr.Column(elem_classes="card"), gr.Accordion("Per instruction type or subject", open=True):
        types = gr.HTML(elem_id="check-types")
    with gr.Column(elem_classes="card"):
        listed = gr.Radio(FILTERS, value="all", label="Prompts", elem_id="check-filter")
        prompts = gr.HTML(elem_id="check-prompts")
        more = gr.Button("Show more", visible=False, size="sm", min_width=110)
    report = Report(summary, cancel, resume, totals, flips, types, prompts, more, gr.State(("", 0)))
    selector.input(lambda value: value, selector, chosen, **PRIVATE)
    _wire_form(app, header, form, start, started, [chosen, selector])
    _wire_report(app, header, report, [chosen, selector], listed, started)


def _lay_out_form() -> tuple[list[Any], gr.Button, gr.HTML]:
    first, count = AMOUNTS["builtin"], len(builtin_suite())
    suite = gr.Radio(SUITES, value="builtin", label="Suite", elem_id="suite")
    hint = gr.HTML(render_checks.hint(first.hint), elem_id="suite-hint")
    path = gr.Textbox(
        label="File on this machine",
        info="Empty: a copy in the folder that UPQ_DATA names, else the Hugging Face hub",
        visible=False,
    )
    amount = gr.Slider(1, count, count, step=1, label=first.label, elem_id="check-limit")
    tokens = gr.Slider(16, MAX_TOKENS, 256, step=8, label="Longest answer, tokens")
    precisions = gr.CheckboxGroup(
        list(PRECISIONS),
        value=list(PRECISIONS),
        label="Precisions",
        info="INT4 and INT2 take part as soon as the chosen run has them",
    )
    start = gr.Button("Run", variant="primary", elem_id="run-checks")
    started = gr.HTML(elem_id="check-started")
    types = gr.HTML(render_checks.unavailable_types(instruction_types()))

    def fit(name: str) -> Any:
        one = AMOUNTS[name]
        return (
            render_checks.hint(one.hint),
            gr.update(visible=name != "builtin", value=""),
            gr.update(maximum=one.most or count, value=one.usual or count, label=one.label),
            *[gr.update(visible=name in ("builtin", "ifeval"))] * 2,
        )

    suite.change(fit, suite, [hint, path, amount, tokens, types], **PRIVATE)
    return [suite, path, amount, tokens, precisions], start, started


def _wire_form(
    app: App,
    header: Header,
    form: list[Any],
    start: gr.Button,
    started: gr.HTML,
    newest: list[Any],
) -> None:
    def begin(run_id: int | None, *values: Any) -> Any:
        try:
            check_id = enqueue(app, run_id, *values)
        except UserError as error:
            return render.notice("failed", error.message, error.hint), gr.skip(), gr.skip()
        position = app.store.queue_position(check_id)
        busy = position > 1 or app.store.live_run() is not None
        state = f"queued #{position}" if busy else "started"
        return render.notice("done", f"Check run #{check_id}: {state}."), NEWEST, NEWEST

    start.click(begin, [header.chosen, *form], [started, *newest], **PRIVATE)


def enqueue(
    app: App,
    run_id: int | None,
    suite: str,
    path: str,
    amount: int,
    max_tokens: int,
    precisions: list[str],
    seed: int = 0,
) -> int:
    """Queue a check of a run's precisions, or of the bundled FP16 model; returns the check's id.

    amount: prompts, chunks, or questions per subject. path: a local file of the suite; empty: the copy that UPQ_DATA
    names, else the hub. Raises UserError.
    """
    parent = app.store.run(run_id) if run_id else None
    there = {"FP16", *(app.precisions(parent.id) if parent else ())}
    wanted = [name for name in PRECISIONS if name in precisions and name in there]
    if not wanted:
        have = ", ".join(name for name in PRECISIONS if name in there)
        raise UserError("no_precision", f"No precision to check is chosen; there is {have}.")
    model = parent.model if parent else "bundled"
    config = check_config(
        suite,
        wanted,
        parent.id if parent else None,
        model,
        path=str(Path(path).absolute()) if path else local_copy(suite),
        max_tokens=int(max_tokens),
        seed=int(seed),
        **{"per_subject" if suite == "mmlu" else "limit": int(amount)},
    )
    if path:
        _texts(suite, config["path"])  # say now what is wrong with it
    return app.store.enqueue_check(config, parent.id if parent else None)


def _wire_report(
    app: App,
    header: Header,
    report: Report,
    choice: list[Any],
    listed: gr.Radio,
    started: gr.HTML,
) -> None:
    chosen = choice[0]
    shown = gr.State(PAGE)

    def show(run_id: int | None, check_id: int, kind: Filter, limit: int, seen: Any) -> Any:
        return _report(app, run_id, check_id, kind, limit, seen)

    def choices(run_id: int | None, check_id: int) -> Any:
        options = [(_check_name(run), run.id) for run in _check_runs(app, run_id)]
        keep = check_id in [value for _, value in options]
        value = check_id if keep else NEWEST
        return value, gr.update(choices=[("newest", NEWEST), *options], value=value)

    def cancel(run_id: int | None, check_id: int) -> Any:
        run = _chosen(app, run_id, check_id)
        return render.notice("empty", app.store.request_cancel(run.id)) if run else gr.skip()

    def resume(run_id: int | None, check_id: int) -> Any:
        run = _chosen(app, run_id, check_id)
        return render.notice("empty", app.store.resume(run.id)) if run else gr.skip()

    picked = [header.chosen, chosen]
    changes = [
        header.revision.change,
        header.chosen.change,
        chosen.change,
        listed.change,
        shown.change,
    ]
    inputs = [*picked, listed, shown, report.seen]
    gr.on(changes, show, inputs, report.outputs, trigger_mode="always_last", **PRIVATE)
    gr.on([header.catalog.change, header.chosen.change], choices, picked, choice, **PRIVATE)
    report.cancel.click(cancel, picked, started, **PRIVATE)
    report.resume.click(resume, picked, started, **PRIVATE)
    report.more.click(lambda limit: limit + PAGE, shown, shown, **PRIVATE)


def _check_runs(app: App, run_id: int | None) -> list[Run]:
    parent = run_id or None
    return [run for run in app.store.runs(kind="check") if run.parent_id == parent]


def _chosen(app: App, run_id: int | None, check_id: int) -> Run | None:
    runs = _check_runs(app, run_id)
    return next((run for run in runs if check_id in (NEWEST, run.id)), None)


def _check_name(run: Run) -> str:
    config = run.config
    file = f" {Path(config['path']).name}" if config["path"] else ""
    count, suite = config["limit"], config["suite"]
    amount = f"first {count:,}" if count else "whole"
    if suite == "mmlu":
        amount = f"{config['per_subject']} per subject" if config["per_subject"] else "whole"
    precisions = " ".join(config["precisions"])
    return f"#{run.id} {NAMES[suite]}{file} · {amount} · {precisions} · {run.state}"


def _report(
    app: App, run_id: int | None, check_id: int, choice: Filter, limit: int, seen: Any
) -> Any:
    run = _chosen(app, run_id, check_id)
    position = app.store.queue_position(run.id) if run else 0
    now_seen = [run.id if run else 0, run.revision if run else 0, position, choice, limit]
    if now_seen == seen:
        return [gr.skip()] * 9
    suite = run.config["suite"] if run else "builtin"
    results = check_report.outcomes(suite, app.store.check_results(run.id)) if run else {}
    listed = {} if suite == "wikitext2" else results
    keys = render_checks.chosen_keys(listed, choice)
    state = run.state if run else ""
    panel = render_run.run_panel(run, position, time.time()) if run else ""
    return (
        panel,
        gr.update(visible=state in ("queued", "running", "interrupted")),
        gr.update(visible=state in ("failed", "cancelled", "interrupted")),
        render_checks.scores_table(suite, results) if results or not run else "",
        render_checks.flip_line(suite, results),
        render_checks.bars(suite, results),
        render_checks.prompt_list(listed, _prompts(run) if run else {}, choice, limit),
        gr.update(visible=len(keys) > limit),
        now_seen,
    )


def _prompts(run: Run) -> dict[Hashable, str | mmlu.Question]:
    try:
        return _texts(run.config["suite"], run.config["path"])
    except UserError:
        return {}  # the suite cannot be read any more


@lru_cache(maxsize=8)
def _texts(suite: str, path: str | None) -> dict[Hashable, str | mmlu.Question]:
    """What names an item -> what was asked; nothing for WikiText-2. Raises UserError where the suite is unsound."""
    where = Path(path) if path else None
    if suite == "mmlu":
        return {(one.subject, one.key): one for one in mmlu.exam(where).questions}
    if suite == "wikitext2":
        wikitext.joined_text(where)
        return {}
    prompts = builtin_suite() if suite == "builtin" else ifeval_suite(where)
    return {prompt.key: prompt.prompt for prompt in prompts}
