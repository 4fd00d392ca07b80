"""What stands in the forms comes back in a real browser, and yields to a link."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.ui.open_app import OpenApp
from tests.ui.pages import LOADED_MS, RUN_MS, go

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LONGEST = "#decoding input[type=number]"


def message(page: Page) -> str:
    return page.locator("#message textarea").input_value()


def visit(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("window.draftsAreBack", timeout=LOADED_MS)
    page.wait_for_timeout(1000)


def test_forms_come_back_after_a_reload(open_page: Callable[..., Page], open_app: OpenApp) -> None:
    home = str(open_app.client.base_url)
    page = open_page(url=home)
    page.wait_for_function("window.draftsAreBack", timeout=LOADED_MS)
    page.get_by_label("Hugging Face hub id").check()
    page.locator("#model-text textarea, #model-text input").first.fill("me/model")
    page.locator("#preset label", has_text="smoke").click()
    page.locator("#advanced button").first.click()
    page.locator("#search-settings").fill("max rows")
    page.get_by_label("max rows", exact=True).first.fill("7")
    go(page, "Chat")
    page.locator("#message textarea").fill("What I was about to say")
    page.locator("#mode label", has_text="one at a time").click()
    page.locator("#decoding button").first.click()
    page.locator(LONGEST).first.fill("48")
    page.keyboard.press("Tab")
    page.locator("#system-prompt button").first.click()
    page.locator("#system-prompt textarea").fill("Be brief.")
    go(page, "Checks")
    page.locator("#suite label", has_text="MMLU").click()
    amount = page.locator("#check-limit input[type=number]")
    expect(amount).to_have_value("5")
    amount.fill("9")
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)

    visit(page, home)
    expect(page.locator("#message textarea")).to_have_value("What I was about to say")
    expect(page.locator("#system-prompt")).to_contain_text("Be brief.")
    expect(page.locator("#decoding")).to_contain_text("at most 48 tokens")
    expect(page.get_by_label("one at a time")).to_be_checked()
    go(page, "Quantize")
    expect(page.locator("#model-text textarea, #model-text input").first).to_have_value("me/model")
    expect(page.locator("#settings-changes")).to_contain_text("data.max_rows")
    expect(page.locator("#settings-changes")).to_contain_text("1 setting differs")
    expect(page.locator("#preset label", has_text="smoke").locator("input")).to_be_checked()
    go(page, "Checks")
    expect(page.locator("#suite-hint")).to_contain_text("57 subjects")
    expect(page.locator("#check-limit input[type=number]")).to_have_value("9")
    page.locator("#suite label", has_text="IFEval").click()
    expect(page.locator("#check-limit input[type=number]")).to_have_value("541")


def test_a_link_wins_over_a_draft_and_junk_is_dropped(
    open_page: Callable[..., Page], open_app: OpenApp
) -> None:
    home = str(open_app.client.base_url)
    page = open_page(url=home)
    page.wait_for_function("window.draftsAreBack", timeout=LOADED_MS)
    go(page, "Chat")
    page.locator("#message textarea").fill("a draft")
    page.wait_for_timeout(300)
    visit(page, f"{home}?tab=chat&prompt=of+the+link&max_tokens=24")
    expect(page.locator("#message textarea")).to_have_value("of the link")
    expect(page.locator("#decoding")).to_contain_text("at most 24 tokens")
    for junk in ("{", '{"kept": {"max_tokens": "x", "mode": "?", "message": 3}}', "[" * 100_000):
        page.evaluate("(junk) => localStorage.setItem('upq-draft-chat', junk)", junk)
        visit(page, home)
        assert message(page) == ""
        expect(page.locator("#decoding")).to_contain_text("at most 256 tokens")
        expect(page.locator("#chat-problem")).to_be_empty()
        expect(page.locator(".toast-body")).to_have_count(0)


def test_settings_changed_in_an_open_conversation_come_back_with_it(
    open_page: Callable[..., Page], open_app: OpenApp
) -> None:
    page = open_page(url=str(open_app.client.base_url))
    go(page, "Chat")
    page.wait_for_function("window.draftsAreBack", timeout=LOADED_MS)
    page.locator("#decoding button").first.click()
    page.locator(LONGEST).first.fill("16")
    page.locator("#message textarea").fill("One, two,")
    page.locator("#send").click()
    page.wait_for_function("location.search.includes('conversation')", timeout=RUN_MS)
    expect(page.locator("#send")).to_have_text("Send", timeout=RUN_MS)
    page.locator(LONGEST).first.fill("32")
    page.keyboard.press("Tab")
    page.locator("#message textarea").fill("and then")
    page.wait_for_timeout(500)
    address = page.url
    visit(page, address)
    expect(page.locator("#pane-fp16")).to_contain_text("One, two,", timeout=LOADED_MS)
    expect(page.locator("#message textarea")).to_have_value("and then")
    expect(page.locator("#decoding")).to_contain_text("at most 32 tokens")
    page.evaluate("localStorage.clear()")
    visit(page, address)
    expect(page.locator("#pane-fp16")).to_contain_text("One, two,", timeout=LOADED_MS)
    expect(page.locator("#decoding")).to_contain_text("at most 16 tokens")
