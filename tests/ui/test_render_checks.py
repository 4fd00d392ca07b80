"""HTML of the checks: scores with their intervals, the paired test, flips, and questions with who took which choice."""

from __future__ import annotations

import html
import re

from tests.ui.test_render import a_result
from ui.checks import render
from upq.evaluation import Marked, Question
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
    assert render.chosen_keys(results, "flipped") == [1, 3]
    assert render.chosen_keys(results, "failed") == [1, 3]
    assert render.chosen_keys(results, "all") == [1, 2, 3, 4]
    assert render.flip_line("ifeval", {"FP16": results["FP16"]}) == ""


def test_a_score_stands_beside_its_interval_and_the_test_beside_both() -> None:
    results = {
        "FP16": [a_result(key, key < 8) for key in range(10)],
        "INT2": [a_result(key, key == 8) for key in range(10)],
    }
    words = words_of(render.scores_table("builtin", results))
    assert "80.0 % [49.0, 94.3]" in words
    assert "8 1 0.039 10" in words, "lost, gained, p, n"
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
    assert render.chosen_keys(results, "flipped") == [("virology", 7)]
    markup = render.prompt_list(results, {("virology", 7): QUESTION}, "all", 10)
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
