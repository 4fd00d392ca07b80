"""Token KL and instructions in Chromium, with a stored run of the tiny model: as a person sees and reaches them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.ui.pages import RUN_MS, go, scrolls_sideways
from tests.ui.studio import running
from tests.unit.jobs.test_served import stored_run
from upq.models import LoadedModel
from upq.store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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
