"""HTML of the checks: scores with their intervals, the paired test, flips, and questions with who took which choice."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
from dataclasses import replace

import pytest

from tests.ui.lab import ENVIRONMENT
from tests.ui.test_render import a_result, a_run
from ui.checks import export, render, render_origin
from ui.checks.choices import chosen_filter, filters
from upq.cli.parser import parser
from upq.config import SUITES, CheckConfig
from upq.evaluation import Ending, Marked, PromptResult, Question
from upq.evaluation.wikitext import Chunk

CHOICES = ("red", "green", "<b>blue</b>", "none")
QUESTION = Question(key=7, subject="virology", question="Which & why?", choices=CHOICES, answer=2)


def words_of(markup: str) -> str:
    """Return what a person reads, pieces apart from each other."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def marked(key: int, choice: int, subject: str = "virology") -> Marked:
    scores = [-2.0] * 4
    scores[choice] = -0.5
    return Marked(key=key, subject=subject, answer=2, scores=tuple(scores))


def test_flips_are_counted_both_ways_with_the_test() -> None:
    results = {
        "FP16": [a_result(1, True), a_result(2, True), a_result(3, False), a_result(4, None)],
        "INT2": [a_result(1, False), a_result(2, True), a_result(3, True), a_result(4, True)],
    }
    line = words_of(render.flip_line("ifeval", results))
    assert "FP16 ✓ → INT2 ✗ 1 · FP16 ✗ → INT2 ✓ 1 · p 1" in line
    assert filters(results) == {
        "flipped": [1, 3],
        "lost": [1],
        "gained": [3],
        "failed": [1, 3],
        "all": [1, 2, 3, 4],
    }
    assert render.flip_line("ifeval", {"FP16": results["FP16"]}) == ""


CUT = Ending(finish="length", tokens=64, repeats=True)
WHOLE = Ending(finish="stop", tokens=12, repeats=False)


def ended(key: int, strict: bool, ending: Ending) -> PromptResult:
    return replace(a_result(key, strict), ending=ending)


def test_a_check_opens_with_what_flipped_and_has_the_filters_that_make_sense() -> None:
    both = {
        "FP16": [ended(1, True, WHOLE), ended(2, False, WHOLE), ended(3, True, WHOLE)],
        "INT2": [ended(1, False, WHOLE), ended(2, False, CUT), ended(3, True, CUT)],
    }
    found = filters(both)
    assert list(found) == ["flipped", "lost", "gained", "cut", "repeats", "failed", "all"]
    assert (found["lost"], found["gained"], found["cut"]) == ([1], [], [2, 3])
    assert chosen_filter(found, "flipped") == "flipped"
    alone = filters({"INT2": both["INT2"]})
    assert list(alone) == ["cut", "repeats", "failed", "all"], "nothing to flip against"
    assert chosen_filter(alone, "flipped") == "failed"
    assert filters({}) == {"failed": [], "all": []}


def test_a_check_that_did_not_come_to_its_end_says_how_far_it_got() -> None:
    results = {"FP16": [a_result(1, True)], "INT2": [a_result(1, False)]}
    unfinished = a_run(kind="check", state="failed", stage_total=152)
    assert "the first 2 of 152" in words_of(render.unfinished(unfinished, results) or "")
    assert render.unfinished(a_run(kind="check", state="done"), results) is None
    assert render.unfinished(unfinished, {}) is None


def test_a_filter_with_nothing_to_list_says_so() -> None:
    results = {"FP16": [ended(1, True, WHOLE)], "INT2": [ended(1, True, WHOLE)]}
    found = filters(results)
    assert set(render.NOTHING) == set(found)
    for kind, keys in found.items():
        words = words_of(render.prompt_list(results, {}, kind, keys, 9))
        assert (render.NOTHING[kind][0] in words) == (not keys), kind
    assert render.prompt_list({}, {}, "all", [], 9) == ""


def test_cut_and_repeating_answers_are_told_apart_at_the_answer_and_in_the_totals() -> None:
    results = {
        "FP16": [a_result(1, True), a_result(2, True)],
        "INT2": [ended(1, True, CUT), ended(2, False, replace(CUT, repeats=False))],
    }
    first = words_of(render.prompt_list(results, {}, "all", [1], 9))
    assert "INT2 ✓ cut repeats" in first
    assert "INT2 cut at 64 tokens repeats itself" in first
    assert "✓✓ existence passed, cut found 3 of 5" in first
    assert "FP16 ✓ INT2" in first, "how FP16 ended is not known"
    second = words_of(render.prompt_list(results, {}, "all", [2], 9))
    assert "cut at 64 tokens" in second
    assert "repeats" not in second
    assert "passed, cut" not in second
    totals = words_of(render.scores_table("builtin", results))
    assert "cut repeats" in totals
    assert "2, 1 passed 1" in totals
    assert "one thing said over and over" in totals


def test_a_check_as_files_has_every_outcome_with_its_ending() -> None:
    results = {"FP16": [a_result(1, True, "=1+1")], "INT2": [ended(1, False, CUT)]}
    rows = list(csv.DictReader(io.StringIO(export.csv_of(results, {1: "Say, hello"}))))
    assert [(row["precision"], row["strict"], row["finish"]) for row in rows] == [
        ("FP16", "True", ""),
        ("INT2", "False", "length"),
    ]
    assert rows[0]["answer"] == "'=1+1", "a spreadsheet would take it for a formula"
    assert (rows[1]["prompt"], rows[1]["tokens"], rows[1]["repeats"]) == (
        "Say, hello",
        "64",
        "True",
    )
    written = json.loads(export.json_of("builtin", {"suite": "builtin"}, results))
    assert [row["cut"] for row in written["scores"]] == [0, 1]
    assert written["outcomes"]["INT2"][0]["ending"]["finish"] == "length"
    exam = {"FP16": [marked(7, 2), marked(0, 1, "astronomy")]}
    rows = list(csv.DictReader(io.StringIO(export.csv_of(exam, {("virology", 7): QUESTION}))))
    assert [(row["taken"], row["passed"], row["question"]) for row in rows] == [
        ("C", "True", "Which & why?"),
        ("B", "False", ""),
    ]


@pytest.mark.parametrize("suite", SUITES)
def test_the_origin_of_a_check_has_the_line_that_repeats_it(suite: str) -> None:
    config = CheckConfig(suite=suite, precisions=("FP16", "INT2"), run_id=4, model="bundled")
    changes = {"per_subject": 2, "seed": 1} if suite == "mmlu" else {"limit": 9}
    config = replace(config, **changes)
    run = a_run(kind="check", config=config.to_values(), environments=[ENVIRONMENT])
    words = words_of(render_origin.origin(run))
    assert "0123456789ab+" in words
    assert "AMD EPYC, 2 cores" in words
    options = parser().parse_args(shlex.split(render_origin.command_of(config))[3:])
    asked = CheckConfig(
        suite=options.suite,
        precisions=tuple(options.precision.split(",")),
        run_id=options.run,
        model="bundled",
        limit=options.limit,
        per_subject=options.per_subject,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )
    assert asked == config


def test_a_score_stands_beside_its_interval_and_the_test_beside_both() -> None:
    results = {
        "FP16": [a_result(key, key < 8) for key in range(10)],
        "INT2": [a_result(key, key == 8) for key in range(10)],
    }
    words = words_of(render.scores_table("builtin", results))
    assert "80.0 % [49.0, 94.3]" in words
    assert "8 1 0.039 10" in words, "lost, gained, p, n"
    assert "repeats" not in words, "a column without any value is left out"
    alone = words_of(render.scores_table("builtin", {"FP16": results["FP16"]}))
    assert "McNemar" in words
    assert "McNemar" not in alone


def test_mmlu_shows_categories_subjects_and_who_took_which_choice() -> None:
    results = {
        "FP16": [marked(7, 2), marked(0, 2, "astronomy")],
        "INT4": [marked(7, 0), marked(0, 2, "astronomy")],
    }
    words = words_of(render.scores_table("mmlu", results))
    assert "accuracy mean of subjects lost gained p" in words
    assert "50.0 %" in words
    bars = words_of(render.bars("mmlu", results))
    assert "All STEM" in bars
    assert "All other FP16 1 of 1 INT4 0 of 1" in bars
    assert "virology" in bars
    found = filters(results)
    assert found["flipped"] == found["lost"] == [("virology", 7)]
    assert "cut" not in found, "letters are not written"
    markup = render.prompt_list(results, {("virology", 7): QUESTION}, "all", found["all"], 10)
    assert "&lt;b&gt;blue" in markup
    listed = words_of(markup)
    assert "A red INT4" in listed
    assert "✓ C <b>blue</b> FP16" in listed
    assert "prompt ('astronomy', 0)" in listed, "a question whose text is not known any more"


def test_wikitext_shows_perplexity_and_what_is_lost_and_neither_bars_nor_flips() -> None:
    results = {
        "FP16": [Chunk(nll=3.0 * 2047, tokens=2047)] * 3,
        "INT2": [Chunk(nll=3.5 * 2047, tokens=2047)] * 3,
    }
    words = words_of(render.scores_table("wikitext2", results))
    assert "20.09 [20.09, 20.09]" in words
    assert "+0.5000 [+0.5000, +0.5000] 3 6,141" in words
    assert "nothing to list" in render.bars("wikitext2", results)
    assert render.flip_line("wikitext2", results) == ""


def test_without_results_the_tab_says_what_to_do() -> None:
    assert "press Run" in render.scores_table("mmlu", {})
