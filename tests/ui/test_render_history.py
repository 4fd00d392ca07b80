"""Kept conversations as HTML: a list, and a page that has no script and asks nothing of any server."""

from __future__ import annotations

import re
import time

from tests.support.conversations import conversation, exchange
from tests.ui.pages import HOSTILE
from ui.chat import render_history
from upq.store import Found, Headline


def line(number: int, title: str, run_id: int | None = 3) -> Headline:
    return Headline(number, title, time.time(), time.time(), run_id)


def test_the_list_says_when_with_which_run_and_which_one_is_open() -> None:
    found = Found([line(2, HOSTILE), line(1, "old", None)], 5)
    drawn = render_history.kept_list(found, "", {3: "#3 Rotated UPQ"}, 2)
    assert "<img" not in drawn
    assert "#3 Rotated UPQ · open now" in drawn
    assert drawn.count('class="title" dir="auto"') == 2, "each finds its direction of writing"
    assert "bundled model" in drawn
    assert drawn.count('aria-current="true"') == 1
    assert "Show more (3 older)" in drawn
    assert 'data-title="5 conversations"' in drawn
    searched = render_history.kept_list(found, "old", {}, None)
    assert "Delete all" not in searched, "it would delete what is not shown"
    assert "run #3, deleted" in searched


def test_an_empty_list_says_what_to_do() -> None:
    assert "as soon as it is answered" in render_history.kept_list(Found([], 0), " ", {}, None)
    assert "Other words" in render_history.kept_list(Found([], 0), "x", {}, None)


def test_a_moment_of_another_year_has_its_year() -> None:
    assert re.search(r">\d{1,2} \w{3} 2001 \d\d:\d\d<", render_history.moment(1e9))
    assert re.search(r">\d{1,2} \w{3} \d\d:\d\d<", render_history.moment(time.time()))


def test_a_page_has_no_script_and_its_policy_forbids_every_request() -> None:
    page = render_history.page(conversation(exchange(HOSTILE, answer=HOSTILE), title=HOSTILE))
    assert "default-src &#39;none&#39;" in page
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    tags = set(re.findall(r"<(\w+)", body))
    allowed = "html head meta title body main header h1 p dl div dt dd section h2 h4 style"
    assert tags <= set(allowed.split())
    assert not re.search(r"url\(|@import", page)


def test_a_page_can_hold_one_question() -> None:
    kept = conversation(exchange("one"), exchange("two", finish="length"))
    page = render_history.page(kept, 2)
    assert "Question 2" in page
    assert "Question 1<" not in page
    assert "2 tokens, stopped at the token limit" in page
    assert "Rotated UPQ · 2.27 bit" in page
