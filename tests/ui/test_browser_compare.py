"""Token KL and instructions in Chromium, with a stored run of the tiny model: as a person sees and reaches them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.conversations import exchange
from tests.ui.open_app import OpenApp
from tests.ui.pages import LOADED_MS, PHONE, RUN_MS, downloaded, go, scrolls_sideways
from tests.ui.studio import running
from tests.unit.jobs.test_served import stored_run
from upq.models import LoadedModel
from upq.store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]
#: Each byte of an answer is a token of the tiny model.
DRAWN = exchange("why?", answer="because it is so")
GREEDY = DRAWN.model_copy(update={"decoding": {**DRAWN.decoding, "temperature": 0.0}})
READERS = ("FP16", "INT4", "INT2")
#: A probability with two decimals.
SHARE = r"(\.\d\d|1)"


def read_tokens(page: Page) -> None:
    """Let the models read the answer of the conversation that was opened."""
    expect(page.locator("#pane-fp16 .answer")).to_be_visible(timeout=LOADED_MS)
    page.locator("#view").get_by_label("Token KL").check()
    expect(page.locator(".tokens")).to_be_visible(timeout=RUN_MS)


def tells_the_likeliest(token: Locator) -> None:
    """Each model's five likeliest tokens are seen, each with its probability."""
    lines = token.locator(".seen-line")
    expect(lines).to_have_text([re.compile(f"^{name} ") for name in READERS])
    for line in lines.all():
        likeliest = line.locator(".likeliest > span")
        expect(likeliest).to_have_text([re.compile(rf"^.+ {SHARE}$")] * 5)
        expect(likeliest.last).to_be_visible()


def test_a_person_reads_where_the_models_part(
    browser: Browser,
    tmp_path: Path,
    photos: Path,
    open_page: Callable[..., Page],
    tiny: LoadedModel,
    tiny_model_dir: Path,
) -> None:
    store = open_store(tmp_path)
    stored_run(store, tiny, tiny_model_dir)
    store.close()
    with running(tmp_path) as url:
        page = open_page(url=url)
        expect(page.locator("#run-selector input")).to_have_value(re.compile("#"), timeout=RUN_MS)
        go(page, "Chat")
        page.locator("#message textarea").fill("Answer in less than 30 words: why is the sky blue?")
        page.locator("#send").click()
        verdicts = page.locator("#instructions .instructions")
        expect(verdicts).to_contain_text("less than 30 words", timeout=RUN_MS)
        expect(verdicts.locator(".verdict")).to_have_count(3)
        page.locator("#view").get_by_text("Token KL").click()
        expect(page.locator(".tokens")).to_be_visible(timeout=RUN_MS)
        expect(page.locator("#columns")).to_be_hidden()
        _keys_go_through_the_answer(page)
        page.screenshot(path=photos / "token-kl.png", full_page=True)
        page.locator("#kl-by").get_by_text("INT4").click()
        expect(page.locator(".token-view")).to_have_attribute("data-by", "int4", timeout=RUN_MS)
        page.locator("#kl-source").get_by_text("INT2").click()
        expect(page.locator('[aria-label="Tokens of INT2\'s answer"]')).to_be_visible(
            timeout=RUN_MS
        )
        page.set_viewport_size({"width": 390, "height": 844})
        assert not scrolls_sideways(page)
        page.screenshot(path=photos / "token-kl-narrow.png", full_page=True)
        page.locator("#view").get_by_text("Text").click()
        expect(page.locator("#columns")).to_be_visible(timeout=RUN_MS)
        expect(page.locator("#token-panel")).to_be_hidden()


def _keys_go_through_the_answer(page: Page) -> None:
    """One Tab stop, arrow keys from piece to piece, n to the next flip; what is told moves nothing."""
    tokens = page.locator(".token")
    assert page.locator('.token[tabindex="0"]').count() == 1
    height = page.evaluate("document.documentElement.scrollHeight")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1).locator(".seen")).to_be_visible()
    expect(tokens.nth(1).locator(".seen")).to_contain_text(re.compile(r"token \d+ of"))
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("n")
    first = page.locator(".token:is(.flip-int4, .flip-int2):focus")
    expect(first.locator(".seen")).to_contain_text("\u25bc")
    assert page.evaluate("document.documentElement.scrollHeight") == height
    page.locator("[data-action=next-flip]").click()
    expect(page.locator(".token:is(.flip-int4, .flip-int2):focus")).to_have_count(1)
    assert page.locator('.token[tabindex="0"]').count() == 1


def test_the_figures_below_an_answer_are_those_of_its_tokens(
    open_app: OpenApp, watched: Callable[..., Page]
) -> None:
    page = watched(open_app.kept(GREEDY))
    read_tokens(page)
    summary = page.locator(".kl-summary")
    names = ["read by", "mean KL", "KL p95", "same likeliest token", "first flip"]
    assert summary.locator("th").all_inner_texts() == names
    classes = [token.get_attribute("class") or "" for token in page.locator(".token").all()]
    for row, name in zip(summary.locator("tbody tr").all(), READERS[1:], strict=True):
        flips = [at for at, marks in enumerate(classes, 1) if f"flip-{name.lower()}" in marks]
        reader, mean, p95, same, first = row.locator("td").all_inner_texts()
        assert reader == name
        assert 0 < float(mean) < float(p95)
        assert same == f"{100 * (1 - len(flips) / len(classes)):.1f} %"
        assert first == (f"{flips[0]} of {len(classes)}" if flips else "none")


def test_an_answer_that_was_drawn_is_shown_with_the_noise_of_drawing(
    open_app: OpenApp, watched: Callable[..., Page]
) -> None:
    page = watched(open_app.kept(DRAWN))
    read_tokens(page)
    summary = page.locator(".kl-summary")
    expect(summary.locator("th").last).to_have_text("draws unlike FP16's at temperature 0.5")
    rows = summary.locator("tbody tr")
    expect(rows.locator("td:first-child")).to_have_text(["FP16, drawn twice", "INT4", "INT2"])
    expect(rows.locator("td:last-child")).to_have_text([re.compile(r"^\d+\.\d %$")] * 3)


def test_a_comparison_leaves_as_files_and_its_page_tells_as_much_as_the_app(
    open_app: OpenApp, watched: Callable[..., Page], browser: Browser, photos: Path
) -> None:
    page = watched(open_app.kept(GREEDY))
    read_tokens(page)
    texts = {}
    for name, ending in (("JSON lines", "jsonl"), ("HTML", "html"), ("Markdown", "md")):
        page.locator("#kl-as label", has_text=name).click()
        file = re.compile(rf"upq-token-kl-\d+-question-1-FP16\.{ending}")
        texts[ending] = downloaded(page, "#kl-file", file)
    head, *tokens = map(json.loads, texts["jsonl"].splitlines())
    assert head["tokens"] == len(tokens) > 0
    mean = page.locator(".kl-summary tbody tr").first.locator("td").nth(1).inner_text()
    assert mean == f"{head['models']['INT4']['kl']:.3f}"
    assert f"| {mean} " in texts["md"]
    alone = browser.new_page()
    asked: list[str] = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.set_content(texts["html"])
    alone.locator(".token").nth(3).focus()
    tells_the_likeliest(alone.locator(".token").nth(3))
    alone.screenshot(path=photos / "token-kl-page.png", full_page=True)
    alone.close()
    assert asked == []


def test_the_likeliest_tokens_are_seen_under_the_pointer_and_gone_behind_it(
    open_app: OpenApp, watched: Callable[..., Page]
) -> None:
    page = watched(open_app.kept(GREEDY))
    read_tokens(page)
    token = page.locator(".token").nth(3)
    expect(token.locator(".seen")).to_be_hidden()
    token.hover()
    tells_the_likeliest(token)
    page.locator("#kl-view .question").hover()
    expect(token.locator(".seen")).to_be_hidden()


def test_the_likeliest_tokens_are_seen_at_a_tap_on_a_phone(
    open_app: OpenApp, browser: Browser
) -> None:
    page = browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(open_app.kept(GREEDY))
    read_tokens(page)
    token = page.locator(".token").nth(3)
    token.tap()
    expect(token).to_be_focused()
    tells_the_likeliest(token)
    expect(token.locator(".seen")).to_be_in_viewport()
    page.close()
