"""A report of one run or of several: one HTML page that needs nothing else, opens from disk and prints well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ui.checks import render as render_checks
from ui.html import PRECISIONS, Html, fixed, join, notice, percent, run_name, size, standalone, tag
from ui.results import render, render_compare
from ui.results.comparison import ResultRow, Subject
from ui.results.render import MEASURES, SUITES
from ui.results.shared_rows import merged

#: Prompts whose answers are shown, and of each answer so many characters.
EXAMPLES, EXAMPLE_CHARACTERS = 3, 700


def report(subjects: Sequence[Subject]) -> str:
    """Return the whole page: headline figures, charts, scores, settings that differ, origins and example answers."""
    title = "UPQ Studio: " + (", ".join(subject.name for subject in subjects) or "no run")
    return standalone(title, *_sections(subjects))


def _sections(subjects: Sequence[Subject]) -> list[Html]:
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    top = tag(
        "header",
        tag("h1", "UPQ Studio", class_="brand"),
        *(
            tag(
                "p",
                tag("i", class_=f"key {subject.slot}"),
                run_name(subject.run),
                " ",
                subject.run.name,
            )
            for subject in subjects
        ),
        tag("p", f"Report of {made}", class_="hint"),
    )
    rows = merged([row for subject in subjects for row in subject.rows])
    origins = _section("Where the results come from", render_compare.origins(subjects, opened=True))
    if not rows:
        return [top, notice("empty", "Nothing has been measured yet."), origins]
    charts = [render.size_against_quality(rows, name) for name in _measured(rows)]
    return [
        top,
        render_compare.remarks(subjects),
        _section("Figures", _headline(rows), render.results_table(rows, brief=True)),
        _section("Size against quality", tag("div", *charts, class_="charts large")),
        _section("Training", *_training(subjects)),
        *(
            _section(f"Evaluations of {subject.name}", *_checks(subject))
            for subject in subjects
            if subject.checks
        ),
        *_differences(subjects),
        origins,
        *(
            _section(f"Answers of {subject.name}", found)
            for subject in subjects
            if (found := _examples(subject))
        ),
    ]


def _differences(subjects: Sequence[Subject]) -> list[Html]:
    """Draw how each further run is set up differently from the first one."""
    first, *others = subjects
    return [
        _section(
            f"Settings of {first.name} and {other.name}", render_compare.differences(first, other)
        )
        for other in others
    ]


def _section(title: str, *children: Html) -> Html:
    return tag("section", tag("h2", title), *children, class_="card")


def _measured(rows: Sequence[ResultRow]) -> list[str]:
    """Return the measures that at least one quantized model has, and KL always."""
    quantized = [row for row in rows if row.label != "FP16"]
    return [
        name
        for name, measure in MEASURES.items()
        if name == "kl" or any(measure.value(row) is not None for row in quantized)
    ]


def _headline(rows: Sequence[ResultRow]) -> Html:
    """Draw the few figures that tell what was won and lost: each artifact's size and fidelity."""
    facts = []
    for row in rows:
        if row.baseline or row.label == "FP16":
            continue
        kl = render.with_interval(
            f"KL {fixed(row.kl, 3)}", row.kl_low, row.kl_high, lambda value: fixed(value, 3)
        )
        name = tag("dt", f"#{row.run} {row.label}", class_=row.precision.lower())
        figures = f"{size(row.size_bytes)}, top-1 {percent(row.top1)}{_as_served(row)}"
        words = join([tag("b", kl), tag("small", figures)])
        facts.append(tag("div", name, tag("dd", words)))
    return tag("dl", *facts, class_="headline") if facts else Html()


def _as_served(row: ResultRow) -> str:
    """Tell the fidelity of the engine that answers, where it computes otherwise than what was measured first."""
    if row.served_by is None:
        return ""
    return f"; as served KL {fixed(row.served_kl, 3)}, top-1 {percent(row.served_top1)}"


def _training(subjects: Sequence[Subject]) -> list[Html]:
    curves = [
        render_compare.overlay(subjects, series)
        for _, series in render_compare.series_choices(subjects)
    ]
    return [
        tag("div", render_compare.kl_over_minutes(subjects), class_="large"),
        render_compare.all_block_errors(subjects),
        tag("div", *curves, class_="charts"),
    ]


def _checks(subject: Subject) -> list[Html]:
    """Draw the scores, and the shares of instruction types or subjects, of each suite that was put to the run."""
    parts = []
    for suite, found in subject.checks.items():
        parts += [tag("h4", SUITES[suite]), render_checks.scores_table(suite, found)]
        parts.append(render_checks.bars(suite, found))
    return parts


def _examples(subject: Subject) -> Html | None:
    """Draw what the precisions answered to the first prompts of a check, beside each other."""
    for suite in ("builtin", "ifeval"):
        found = subject.checks.get(suite, {})
        answers = {name: {result.key: result.response for result in found[name]} for name in found}
        names = [name for name in PRECISIONS if name in answers]
        keys = list(answers[names[0]])[:EXAMPLES] if names else []
        if keys:
            examples = [
                _example(key, {name: answers[name].get(key, "") for name in names}) for key in keys
            ]
            return tag("div", *examples, class_="examples-kept")
    return None


def _example(key: int, answers: Mapping[str, str]) -> Html:
    columns = []
    for name, text in answers.items():
        cut = text[:EXAMPLE_CHARACTERS] + ("\u2026" if len(text) > EXAMPLE_CHARACTERS else "")
        title = tag("h4", name, class_=name.lower())
        columns.append(tag("div", title, tag("div", cut or "(empty)", class_="text")))
    return tag(
        "div", tag("p", f"Prompt {key}", class_="hint"), tag("div", *columns, class_="answers")
    )
