"""What the browser tests do on a page: open tabs, fill the form, wait for runs."""

from __future__ import annotations

import re
import shutil

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from tests.ui.studio import Studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LOADED_MS = 30_000
RUN_MS = 120_000
WIDE: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
HOSTILE = (
    "<img src=http://x.invalid/?q=1 onerror=alert(1)>"
    "<form action=http://x.invalid/><input name=a></form>${alert(1)}{{alert(1)}}"
)
TABS = ("Quantize", "Chat", "Checks", "Results", "Export")
expect.set_options(timeout=20_000)  # the machine may be busy


def note_stranger(requested: str, own_url: str, strangers: list[str]) -> None:
    if not requested.startswith((own_url, "data:", "blob:")):
        strangers.append(requested)


def go(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def fill_form(page: Page, studio: Studio, settings: dict[str, str]) -> None:
    """Choose the tiny model and the smoke preset, and fill in a few settings of Advanced."""
    page.get_by_label("Path on this machine").check()
    page.locator("#model-text textarea, #model-text input").first.fill(str(studio.model))
    page.locator("#preset label", has_text="smoke").click()
    page.locator("#advanced button").first.click()
    for label, value in settings.items():
        page.locator("#search-settings").fill(label)
        page.get_by_label(label, exact=True).first.fill(value)
        page.keyboard.press("Tab")
    expect(page.locator("#estimate .facts")).to_contain_text("INT2", timeout=LOADED_MS)


def start_run(page: Page, studio: Studio, settings: dict[str, str]) -> None:
    fill_form(page, studio, settings)
    page.locator("#start").click()
    expect(page.locator("#started")).to_contain_text(re.compile("started|queued|done"))


def listed_runs(page: Page) -> str:
    """Return the history as soon as the page has filled it."""
    history = page.locator("#history")
    expect(history).to_have_text(re.compile(r"\S"), timeout=LOADED_MS)
    return history.text_content() or ""


def finished_run(page: Page, studio: Studio) -> None:
    """Make sure that a finished run with artifacts exists and is chosen in the header."""
    chosen = page.locator("#run-selector input")
    if "done" not in listed_runs(page):
        start_run(page, studio, {"max rows": "4", "held out": "2"})
        expect(page.locator("#run-summary")).to_contain_text("Done.", timeout=RUN_MS)
    expect(chosen).to_have_value(re.compile("#"), timeout=LOADED_MS)


def scrolls_sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def downloaded(page: Page, button: str, name: str | re.Pattern[str]) -> str:
    """What a button gives as soon as it gives the file of this name."""
    for _ in range(20):
        with page.expect_download() as download:
            page.locator(button).click()
        if re.fullmatch(name, download.value.suggested_filename):
            return download.value.path().read_text(encoding="utf-8")
        page.wait_for_timeout(500)
    pytest.fail(f"the button never gave {name}")
