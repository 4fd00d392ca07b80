"""Folds that somebody opened stay open when their panel is drawn anew; the vote stays in reach on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from ui import theme
from ui.chat.render_vote import _choices
from ui.html import tag
from ui.html.charts import Series, line_chart
from ui.html.folds import FOLDING

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PHONE: ViewportSize = {"width": 390, "height": 844}


def charts(step: int) -> str:
    """Two charts, which have a table of their values each."""
    curve = Series("KL", "int4", [(1.0, 0.5), (2.0, 0.25), (3.0, 1 / step)])
    drawn = [line_chart(title, [curve], x_name="step", empty="") for title in ("first", "second")]
    return str(tag("div", *drawn))


def test_an_open_fold_stays_open_and_keeps_the_focus(browser: Browser) -> None:
    page = browser.new_page()
    page.set_content(f"<div id=panel>{charts(4)}</div><div id=other>{charts(4)}</div>")
    page.evaluate(f"() => {{ {FOLDING} }}")
    folds = page.locator("#panel details")
    folds.nth(1).locator("summary").click()
    redraw = "(html) => { document.querySelector('#panel').innerHTML = html; }"
    page.evaluate(redraw, charts(5))
    expect(folds.nth(1)).to_have_attribute("open", "")
    expect(folds.nth(1).locator("summary")).to_be_focused()
    assert page.locator("details[open]").count() == 1, "neither its neighbour nor another panel's"
    folds.nth(1).locator("summary").click()
    page.evaluate(redraw, charts(6))
    assert page.locator("details[open]").count() == 0
    page.close()


def test_on_a_phone_the_vote_is_in_reach_beside_long_answers(
    browser: Browser, photos: Path
) -> None:
    page = browser.new_page(viewport=PHONE)
    text = tag("div", tag("section", "word " * 4000, class_="message blind-answer"))
    stage = tag("div", text, _choices(), class_="blind-stage")
    prose = tag("div", stage, class_="prose")
    body = tag("div", prose, class_="gradio-container")
    reset = "<style>* { box-sizing: border-box; margin: 0; }</style>"  # as Gradio does
    page.set_content(f"{reset}{theme.head()}{body}")
    for place in (0, 1500):
        page.evaluate("(place) => scrollTo(0, place)", place)
        for button in page.locator("button.vote").all():
            box = button.bounding_box()
            assert box
            assert box["y"] + box["height"] <= PHONE["height"]
            assert box["height"] >= 44
            assert box["x"] + box["width"] <= PHONE["width"]
    page.screenshot(path=photos / "vote-phone.png")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    bar, answer = page.locator(".blind-bar"), page.locator(".blind-answer")
    end, start = answer.bounding_box(), bar.bounding_box()
    assert end
    assert start
    assert end["y"] + end["height"] <= start["y"], "nothing of the text stays covered"
    page.close()
