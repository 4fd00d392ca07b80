"""The Token KL view and the verdicts as HTML: the text is whole and escaped, steps and marks are where they belong."""

from __future__ import annotations

import re

import pytest

from ui.chat import render_compare
from ui.chat.render_compare import WORSE, read_by, share_of, token_view, verdicts
from upq.compare import Comparison, Instruction, Outcome, Seen, TextPiece
from upq.decode import Decoding

GREEDY = Decoding()
TEXTS = {1: "The", 2: " <b>", 3: "\n", 4: "\ufffd", 5: "<|im_end|>"}
IDS = [1, 2, 4, 4, 3, 5]
PIECES = [
    TextPiece("The", 0, 1),
    TextPiece(" <b>", 1, 2),
    TextPiece("🦊", 2, 4),
    TextPiece("\n", 4, 5),
    TextPiece("<|im_end|>", 5, 6),
]
BEST = [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625), (5, 0.03)]


def seen(kl: list[float], flips: set[int], differs: list[float]) -> Seen:
    flipped = [at in flips for at in range(len(IDS))]
    return Seen([BEST] * len(IDS), [0.5] * len(IDS), kl, flipped, differs)


def comparison(differs: list[float] | None = None, is_cut: bool = False) -> Comparison:
    models = {
        "FP16": seen([0.0] * 6, set(), differs or []),
        "INT4": seen([0.0, 0.1, 0.0, 0.2, 0.0, 0.0], set(), differs or []),
        "INT2": seen([0.05, 0.6, 0.0, 2.5, 0.0, 0.0], {1, 3}, differs or []),
    }
    return Comparison(IDS, PIECES, models, TEXTS, is_cut)


def pieces(html: str) -> list[str]:
    """The classes of each piece, in their order."""
    return re.findall(r'<span class="(token[^"]*)"', html)


def test_pieces_are_shaded_by_each_model_and_by_the_worse_of_both() -> None:
    assert pieces(token_view(comparison(), "Why?", "FP16", GREEDY)) == [
        "token",
        "token int4-1 int2-2 worse-2 flip-int2",
        "token int4-1 int2-3 worse-3 flip-int2",
        "token",
        "token",
    ]


def test_who_reads_is_told_to_the_style_sheet() -> None:
    view = token_view(comparison(), "Why?", "FP16", GREEDY)
    assert read_by(view, "INT4").startswith('<div class="token-view" data-by="int4">')
    assert read_by(view, WORSE).startswith('<div class="token-view" data-by="worse">')


def test_text_of_models_and_people_is_no_markup() -> None:
    html = token_view(comparison(), "<script>alert(1)</script>", "FP16", GREEDY)
    assert "<script" not in html
    assert "<b>The" not in html.replace("<b>The</b>", "")
    assert "&lt;|im_end|&gt;" in html
    assert " &lt;b&gt;<span" in html


def test_one_piece_is_reached_by_tab_and_each_token_of_it_is_told() -> None:
    html = token_view(comparison(), "Why?", "FP16", GREEDY)
    assert html.count('tabindex="0"') == 1 + 1  # the first piece, and the table of figures
    assert html.count('role="option" tabindex="-1"') == len(PIECES) - 1
    assert [f"token {at} of 6" in html for at in range(1, 7)] == [True] * 6
    fox = html[html.index("🦊") : html.index("\u21b5</i>")]
    assert fox.count("seen-head") == 2


def test_the_figures_name_the_first_flip_and_the_noise_floor_only_where_something_is_drawn() -> (
    None
):
    greedy = token_view(comparison(), "Why?", "FP16", GREEDY)
    assert "2 of 6" in greedy
    assert "none" in greedy
    assert "drawn twice" not in greedy
    drawn = token_view(
        comparison([0.25] * 6, is_cut=True), "Why?", "FP16", Decoding(temperature=0.7)
    )
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
    html = token_view(comparison(), "Why?", "FP16", GREEDY)
    assert len(re.findall(r"step step-\d", html)) == len(render_compare.STEPS) + 1
