"""The columns of the chat: their heads, and the words of two answers beside each other."""

from __future__ import annotations

import re
import time

import pytest

from tests.ui.test_render import Structure
from ui import app_state
from ui.chat import render, render_head, render_words


def test_the_word_view_is_one_text_until_the_answers_part_and_two_from_there_on() -> None:
    html = render_words.word_view(
        "INT2",
        "The sky is blue because light is scattered by the air, and that is all.",
        "The sky is blue since it is old, and that is all. light is",
    )
    same, _, rest = html.partition('class="parting"')
    assert "The same as FP16 for 4 words, then different." in same
    assert Structure(same.partition('<p class="parting-line"')[0]).words.endswith("The sky is blue")
    assert "here the answers part" in rest
    linked = re.findall(r'<mark data-link="(\d)"[^>]*>([^<]*)</mark>', rest)
    assert [words for _, words in linked] == ["and that is all."] * 2
    assert linked[0] == linked[1], "both ends of a link have one number"
    assert "FP16 goes on" in rest
    assert "INT2 goes on" in rest
    assert "<del" not in html, "nothing is crossed out"


def test_fewer_than_three_equal_words_are_chance() -> None:
    html = render_words.word_view("INT4", "a in the b of a c", "d in the e of a f")
    assert "<mark" not in html
    assert "Different from FP16 from the first word on." in html


def test_the_word_view_of_endless_loops_takes_little_time() -> None:
    loop = "a place where the sea is a place, " * 300
    started = time.process_time()
    html = render_words.word_view("INT2", f"one {loop}", f"two {loop}")
    assert time.process_time() - started < 3
    assert Structure(html).words.count("a place where") == 600, "nothing is left out"


def test_a_column_head_says_in_one_line_what_matters_and_folds_the_rest() -> None:
    fp16: app_state.Badge = {"fair": {"tokens_per_s": 50.0, "first_token_s": 0.3}}
    badge: app_state.Badge = {
        "size_bytes": 62_200_000,
        "bits_per_weight": 2.27,
        "memory_bytes": 81_000_000,
        "backend": "torch, packed weights",
        "load_s": 1.42,
        "fair": {"tokens_per_s": 205.2, "first_token_s": 0.12},
        "shared": {"tokens_per_s": 80.0, "first_token_s": 0.5},
    }
    html = render_head.column_head("INT2", badge, fp16)
    line, details = html.split("</summary>")
    assert Structure(f"{line}</summary></details>").words == "INT262.2 MB · 2.27 bit · 4.1x FP16"
    assert "80" not in line, "a speed while sharing is no figure to compare"
    facts = dict(re.findall(r"<dt[^>]*>([^<]+)</dt><dd>(.*?)</dd>", details))
    assert facts["in memory"] == "81 MB"
    assert (
        facts["speed alone"]
        == f'205 tok/s<small title="{render_head.FIRST_HINT}">first token 0.1 s</small>'
    )
    assert facts["speed while sharing"].startswith("80 tok/s")
    assert facts["loaded in"] == "1.4 s"
    assert "torch, packed weights" in details


def test_a_head_compares_no_speed_that_it_does_not_know() -> None:
    alone: app_state.Badge = {"fair": {"tokens_per_s": 205.2, "first_token_s": 0.12}}
    assert "205 tok/s" in Structure(render_head.column_head("INT2", alone, {})).words
    assert "x FP16" not in render_head.column_head("INT2", alone, {})
    assert "x FP16" not in render_head.column_head("INT2", {}, alone)
    assert render_head.NOT_LOADED in render_head.column_head("INT4", {})


def test_equal_answers_are_said_to_be_equal() -> None:
    assert "The same words as FP16." in render_words.word_view("INT4", "a b", "a  b")


@pytest.mark.parametrize("repeats", [True, False])
def test_an_answer_that_ends_in_a_loop_says_so_below_it(repeats: bool) -> None:
    said: render.Message = {
        "role": "assistant",
        "content": "on and on",
        "tokens": 3,
        "repeats": repeats,
    }
    footer = str(render.answer(said)).partition("<footer>")[2]
    assert ("3 tokens · ⚠ repeats itself" in footer) is repeats


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        (1, "1 earlier turn was left out: the model reads 8,192 tokens."),
        (3, "3 earlier turns were left out: the model reads 8,192 tokens."),
    ],
)
def test_turns_that_the_model_did_not_read_are_counted_below_the_answer(
    left_out: int, words: str
) -> None:
    said: render.Message = {"role": "assistant", "content": "because"}
    assert "left out" not in render.answer(said)
    said["left_out"], said["limit"] = left_out, 8192
    assert f'<p class="hint">{words}</p>' in render.answer(said)


def test_a_screen_reader_hears_of_a_failed_answer_once() -> None:
    failed: render.Message = {"role": "assistant", "content": "no memory", "finish": "failed"}
    assert "role=" not in str(render.answer(failed))
    assert render.announcement("INT2", [failed]) == "INT2 failed: no memory"
