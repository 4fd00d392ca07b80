"""The form of the Checks tab: which suite, how much of it, which precisions; and putting it into the queue."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from ui.app_state import PRIVATE, App, Offer, Outputs
from ui.checks import render
from ui.drafts import Draft, Found, is_number
from ui.header import Header
from ui.html import PRECISIONS, parts
from ui.requests import RunChecks
from upq.config import CheckConfig
from upq.errors import UserError
from upq.evaluation import (
    builtin_suite,
    ifeval_suite,
    instruction_types,
    local_copy,
    mmlu,
    wikitext,
)


@dataclass(frozen=True)
class Amount:
    """How much of a suite to ask for; 0 is all. hint tells what that takes with the bundled model on two cores."""

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
USUAL_TOKENS, MAX_TOKENS = 256, 512
FIELDS = ("suite", "path", "amount", "tokens", "precisions")
#: The choice of the report that follows the newest check.
NEWEST = 0


@dataclass
class Form(Outputs):
    """The components of the form: first its fields in RunChecks' order, the run aside."""

    suite: gr.Radio
    path: gr.Textbox
    amount: gr.Slider
    tokens: gr.Slider
    precisions: gr.CheckboxGroup
    hint: gr.HTML
    types: gr.HTML

    @property
    def fields(self) -> dict[str, Any]:
        """The components that somebody fills in, by name."""
        return {name: vars(self)[name] for name in FIELDS}

    @classmethod
    def fitted(cls, kept: Mapping[str, Any]) -> list[Any]:
        """Values that make the form one of a suite, with what is kept of its fields, by name, and else the usual."""
        suite = kept["suite"]
        most, usual = amounts(suite)
        has_answers = suite in ("builtin", "ifeval")
        tokens = {"value": kept["tokens"]} if "tokens" in kept else {}
        return cls.fill(
            suite=suite,
            path=gr.update(visible=suite != "builtin", value=kept.get("path", "")),
            amount=gr.update(
                maximum=most, value=kept.get("amount", usual), label=AMOUNTS[suite].label
            ),
            tokens=gr.update(visible=has_answers, **tokens),
            precisions=kept.get("precisions", gr.skip()),
            hint=render.hint(AMOUNTS[suite].hint),
            types=gr.update(visible=has_answers),
        )

    def draft(self) -> Draft:
        """What the browser remembers of the form."""
        return Draft("checks", self.fields, self.outputs, self.restored)

    @classmethod
    def restored(cls, found: Found) -> list[Any]:
        """Values that put back what fits; nothing where the suite is not offered. Each has amounts of its own."""
        kept = {name: value for name, value in found.values.items() if name != "amount"}
        if "suite" not in kept:
            return cls.fill()
        amount = found.kept.get("amount")
        if is_number(amount, 1, amounts(kept["suite"])[0]):
            kept["amount"] = amount
        return cls.fitted(kept)


def amounts(suite: str) -> tuple[int, int]:
    """How much there is of a suite at most, and how much is usual."""
    chosen = AMOUNTS[suite]
    most = chosen.most or len(builtin_suite())
    return most, chosen.usual or most


def lay_out(offer: Offer) -> tuple[Form, gr.Button, gr.HTML]:
    """Lay out the form; return it with the start button, and what it answers."""
    first, count = AMOUNTS["builtin"], len(builtin_suite())
    suites = [one for one in SUITES if offer.suites is None or one[1] in offer.suites]
    suite = gr.Radio(suites, value="builtin", label="Suite", elem_id="suite")
    hint = gr.HTML(render.hint(first.hint), elem_id="suite-hint")
    path = gr.Textbox(
        label="File on this machine",
        info="Empty: a copy in the folder that UPQ_DATA names, else the Hugging Face hub",
        visible=False,
    )
    amount = gr.Slider(1, count, count, step=1, label=first.label, elem_id="check-limit")
    longest = offer.longest(MAX_TOKENS)
    tokens = gr.Slider(
        16, longest, min(USUAL_TOKENS, longest), step=8, label="Longest answer, tokens"
    )
    precisions = gr.CheckboxGroup(
        list(PRECISIONS),
        value=list(PRECISIONS),
        label="Precisions",
        info="INT4 and INT2 take part as soon as the chosen run has them",
    )
    start = gr.Button("Run", variant="primary", elem_id="run-checks")
    started = gr.HTML(elem_id="check-started")
    types = gr.HTML(render.unavailable_types(instruction_types()))

    form = Form(suite, path, amount, tokens, precisions, hint, types)
    suite.input(lambda name: Form.fitted({"suite": name}), suite, form.outputs, **PRIVATE)
    return form, start, started


def wire(
    app: App,
    header: Header,
    form: Form,
    start: gr.Button,
    started: gr.HTML,
    newest: list[Any],
) -> None:
    """Let the button queue a check and show the newest, by setting the components `newest`."""

    def queue_check(run_id: int | None, suite: str, path: str | None, *values: Any) -> Any:
        try:
            asked = RunChecks.at([run_id or 0, suite, path or "", *values])
            check_id = enqueue(app, asked)
        except UserError as error:
            return parts.notice("failed", error.message, error.hint), gr.skip(), gr.skip()
        position = app.store.queue_position(check_id)
        busy = position > 1 or app.is_busy()
        state = f"queued #{position}" if busy else "started"
        return parts.notice("done", f"Check run #{check_id}: {state}."), NEWEST, NEWEST

    start.click(queue_check, [header.chosen, *form.fields.values()], [started, *newest], **PRIVATE)


def enqueue(app: App, asked: RunChecks) -> int:
    """Queue a check of a run's precisions, or of the bundled FP16 model; return the check's id. Raises UserError."""
    app.admit_check(asked.suite, asked.path, asked.max_tokens)
    parent = app.store.run(asked.run_id) if asked.run_id else None
    existing = {"FP16", *(app.precisions(parent.id) if parent else ())}
    wanted = [name for name in PRECISIONS if name in asked.precisions and name in existing]
    if not wanted:
        have = ", ".join(name for name in PRECISIONS if name in existing)
        raise UserError("no_precision", f"No precision to check is chosen; there is {have}.")
    config = CheckConfig(
        suite=asked.suite,
        precisions=tuple(wanted),
        run_id=parent.id if parent else None,
        model=parent.model if parent else "bundled",
        path=str(Path(asked.path).absolute()) if asked.path else local_copy(asked.suite),
        max_tokens=asked.max_tokens,
        seed=asked.seed,
        **{"per_subject" if asked.suite == "mmlu" else "limit": asked.amount},
    )
    if asked.path:
        texts(asked.suite, config.path)  # say now what is wrong with it
    return app.store.enqueue_check(config)


@lru_cache(maxsize=8)
def texts(suite: str, path: str | None) -> dict[Hashable, str | mmlu.Question]:
    """Return what was asked, by what names an item; for WikiText-2 that is nothing.

    Raises UserError where the suite is unsound.
    """
    file = Path(path) if path else None
    if suite == "mmlu":
        return {
            (question.subject, question.key): question for question in mmlu.exam(file).questions
        }
    if suite == "wikitext2":
        wikitext.joined_text(file)
        return {}
    prompts = builtin_suite() if suite == "builtin" else ifeval_suite(file)
    return {prompt.key: prompt.prompt for prompt in prompts}
