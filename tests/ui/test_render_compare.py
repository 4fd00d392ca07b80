"""The Token KL view and the verdicts as HTML: the text is whole and escaped, steps and marks are where they belong."""

from __future__ import annotations

import re

import pytest

from tests.support.comparisons import PIECES, comparison, report
from ui.chat import render_compare
from ui.chat.render_compare import WORSE, page, read_by, share_of, token_view, verdicts
from upq.compare import Instruction, Outcome
from upq.decode import Decoding


def pieces(html: str) -> list[str]:
    """The classes of each piece, in their order."""
    return re.findall(r'<span class="(token[^"]*)"', html)


def test_pieces_are_shaded_by_each_model_and_by_the_worse_of_both() -> None:
    assert pieces(token_view(report())) == [
        "token",
        "token int4-1 int2-2 worse-2 flip-int2",
        "token int4-1 int2-3 worse-3 flip-int2",
        "token",
        "token",
    ]


def test_who_reads_is_told_to_the_style_sheet() -> None:
    view = token_view(report())
    assert read_by(view, "INT4").startswith('<div class="token-view" data-by="int4">')
    assert read_by(view, WORSE).startswith('<div class="token-view" data-by="worse">')


def test_text_of_models_and_people_is_no_markup() -> None:
    html = token_view(report(question="<script>alert(1)</script>"))
    assert "<script" not in html
    assert "<b>The" not in html.replace("<b>The</b>", "")
    assert "&lt;|im_end|&gt;" in html
    assert " &lt;b&gt;<span" in html


def test_one_piece_is_reached_by_tab_and_each_token_of_it_is_told() -> None:
    html = token_view(report())
    assert html.count('tabindex="0"') == 1 + 1  # the first piece, and the table of figures
    assert html.count('role="option" tabindex="-1"') == len(PIECES) - 1
    assert [f"token {at} of 6" in html for at in range(1, 7)] == [True] * 6
    fox = html[html.index("🦊") : html.index("\u21b5</i>")]
    assert fox.count("seen-head") == 2


def test_the_page_needs_nothing_else_and_each_piece_is_reached_without_a_script() -> None:
    html = page(report(system="<i>Be brief.</i>"), WORSE)
    assert html.startswith("<!DOCTYPE html>")
    assert 'data-by="worse"' in html
    assert html.count('role="option" tabindex="0"') == len(PIECES)
    assert "with the Tab key" in html
    assert "Next flip" not in html
    assert "<script" not in html
    assert "&lt;i&gt;Be brief." in html
    assert "Run 3. Drawn with max new tokens" in html
    assert html.count("org/model") == 3


def test_the_figures_name_the_first_flip_and_the_noise_floor_only_where_something_is_drawn() -> (
    None
):
    greedy = token_view(report())
    assert "2 of 6" in greedy
    assert "none" in greedy
    assert "drawn twice" not in greedy
    found = comparison([0.25] * 6, is_cut=True)
    drawn = token_view(report(comparison=found, decoding=Decoding(temperature=0.7)))
    assert "FP16, drawn twice" in drawn
    assert "at temperature 0.7" in drawn
    assert "25.0 %" in drawn
    assert "Only the first 6 tokens" in drawn


@pytest.mark.parametrize(("share", "text"), [(0.412, ".41"), (1.0, "1"), (0.001, ".00")])
def test_a_probability_takes_little_room(share: float, text: str) -> None:
    assert share_of(share) == text


def test_verdicts_say_who_followed_what_and_why() -> None:
    rule = Instruction("in <two> sentences", ())
    found = {
        "FP16": Outcome(False, "found 3"),
        "INT4": Outcome(True, "found 2"),
        "INT2": Outcome(None, "needs data"),
    }
    html = verdicts([rule], [found])
    assert "in &lt;two&gt; sentences" in html
    words = re.sub(r"<[^>]+>", "", html)
    assert "FP16 \u2717 found 3" in words
    assert "INT4 \u2713 found 2" in words
    assert "INT2 ? needs data" in words


def test_a_rule_that_nothing_can_judge_here_says_why_once() -> None:
    found = {name: Outcome(None, "needs data") for name in ("FP16", "INT4", "INT2")}
    words = re.sub(r"<[^>]+>", "", verdicts([Instruction("in two sentences", ())], [found]))
    assert words.count("needs data") == 1
    assert "cannot be judged here: needs data" in words


def test_every_step_of_the_legend_has_a_threshold() -> None:
    html = token_view(report())
    assert len(re.findall(r"step step-\d", html)) == len(render_compare.STEPS) + 1
