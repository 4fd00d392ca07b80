"""Answers in Chromium as no tiny model writes them, in kept conversations that are opened: code, loops, equal words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import FloatRect, Locator, Page, expect

from tests.support.conversations import exchange
from tests.ui.open_app import OpenApp
from tests.ui.pages import LOADED_MS
from upq.store import Answer, Exchange

pytestmark = [pytest.mark.browser, pytest.mark.slow]

#: Two lines of ten characters, the narrowest and the widest.
CODE = "iiiiiiiiii\nWWWWWWWWWW"
WITH_CODE = f"Here it is:\n\n```python\n{CODE}\n```\n\nThat is all."
#: The widths of the two lines in an element whose only child is the text. Pixels.
WIDTHS = """(element) => [0, 11].map((start) => {
  const line = document.createRange();
  line.setStart(element.firstChild, start);
  line.setEnd(element.firstChild, start + 10);
  return line.getBoundingClientRect().width;
})"""
#: What FP16 and INT2 say; the last four words are the same again.
PARTED = (
    "The sky is blue because light is scattered, and that is all.",
    "The sky is blue since it is old, and that is all.",
)
LINKED = "and that is all."


@pytest.fixture
def opened(watched: Callable[..., Page], open_app: OpenApp) -> Callable[[Exchange], Page]:
    """Keep a conversation of one question, and open it."""

    def at(asked: Exchange) -> Page:
        page = watched(open_app.kept(asked))
        expect(page.locator("#pane-int2 .answer > footer")).to_be_visible(timeout=LOADED_MS)
        return page

    return at


def answered(fp16: Answer, int2: Answer) -> Exchange:
    return exchange("why?").model_copy(update={"answers": {"FP16": fp16, "INT2": int2}})


def in_words(page: Page) -> Locator:
    """Choose the view of words; return how each of the two answers goes on in the column of INT2."""
    page.locator("#view").get_by_label("Words").check()
    ways = page.locator("#pane-int2 .ways > div")
    expect(ways).to_have_count(2)
    return ways


def boxes(ways: Locator) -> list[FloatRect]:
    return [box for way in ways.all() if (box := way.bounding_box())]


def test_code_in_an_answer_is_drawn_in_letters_of_one_width(
    opened: Callable[[Exchange], Page],
) -> None:
    page = opened(exchange("Write code.", answer=WITH_CODE))
    narrow, wide = page.locator("#pane-fp16 .code pre code").evaluate(WIDTHS)
    assert 0 < narrow == pytest.approx(wide)


def test_the_button_of_a_code_block_copies_the_code_alone(
    opened: Callable[[Exchange], Page],
) -> None:
    page = opened(exchange("Write code.", answer=WITH_CODE))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = page.locator("#pane-fp16 .code").get_by_role("button", name="Copy")
    copy.click()
    expect(page.locator("#pane-fp16 .code").get_by_role("button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == CODE


def test_two_ways_of_going_on_stand_below_or_beside_each_other(
    opened: Callable[[Exchange], Page],
) -> None:
    page = opened(answered(*(Answer(content=text) for text in PARTED)))
    ways = in_words(page)
    first, second = boxes(ways)
    assert second["x"] == first["x"]
    assert second["y"] >= first["y"] + first["height"]
    page.locator("#pane-int2").get_by_role("button", name="Side by side").click()
    first, second = boxes(ways)
    assert second["x"] >= first["x"] + first["width"]
    assert second["y"] == first["y"]


def test_words_that_both_answers_say_are_underlined_and_light_up_together(
    opened: Callable[[Exchange], Page],
) -> None:
    page = opened(answered(*(Answer(content=text) for text in PARTED)))
    linked = in_words(page).locator("mark")
    expect(linked).to_have_text([LINKED, LINKED])
    plain = linked.first.evaluate("mark => getComputedStyle(mark).backgroundColor")
    for mark in linked.all():
        expect(mark).to_have_css("text-decoration-line", "underline")
    linked.last.hover()
    for mark in linked.all():
        expect(mark).not_to_have_css("background-color", plain)


def test_an_answer_tells_of_its_loop_and_of_turns_that_were_not_read(
    opened: Callable[[Exchange], Page],
) -> None:
    looped = Answer(content="on " * 99, finish="length", tokens=99, repeats=True)
    page = opened(answered(Answer(content="because", left_out=2, limit=512), looped))
    loop = page.locator("#pane-int2 .answer")
    expect(loop.locator("footer")).to_contain_text("repeats itself")
    expect(loop).not_to_contain_text("left out")
    short = page.locator("#pane-fp16 .answer")
    expect(short).to_contain_text("2 earlier turns were left out: the model reads 512 tokens.")
    expect(short).not_to_contain_text("repeats itself")
