"""When a page asks the server what is new: seldom while nothing happens, not at all while nobody sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.ui.lab import Lab
from tests.ui.pages import LOADED_MS, go
from tests.ui.studio import running
from ui.html.beat import BEATING
from upq.config import preset
from upq.store import Labels, open_store

pytestmark = pytest.mark.browser
#: Headless Chromium hides no page, so it is told.
SEEN = """(state) => {
  Object.defineProperty(document, 'visibilityState', { get: () => state, configurable: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def asked_within(page: Page, seconds: int) -> int:
    """How often the page asks in this time of its own clock."""
    page.evaluate("asked = 0")
    page.clock.run_for(1000 * seconds)
    return page.evaluate("asked")


def test_a_page_asks_often_only_while_there_is_something_to_hear(browser: Browser) -> None:
    page = browser.new_page()
    page.clock.install(time=0)
    page.set_content("<div id=status><span>at work</span></div>")
    start = (
        "const element = document.querySelector('#status'); const trigger = () => { asked += 1; };"
    )
    page.evaluate(f"() => {{ window.asked = 0; {start} {BEATING} }}")
    assert asked_within(page, 12) == 12
    page.evaluate("document.querySelector('#status').innerHTML = '<span data-rests></span>'")
    assert asked_within(page, 12) == 3
    for act in ("document.body.click()", "document.dispatchEvent(new KeyboardEvent('keydown'))"):
        page.evaluate(act)
        assert asked_within(page, 4) == 4, act
        page.clock.run_for(4000)
        assert asked_within(page, 12) == 3, act
    page.evaluate(SEEN, "hidden")
    assert asked_within(page, 600) == 0
    page.evaluate("asked = 0")
    page.evaluate(SEEN, "visible")
    assert page.evaluate("asked") == 1, "at once"
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: false }))")
    assert page.evaluate("asked") == 1, "a page that is loaded asks by itself"
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    assert page.evaluate("asked") == 2, "the browser's button back"
    page.close()


@pytest.mark.slow
def test_a_hidden_page_asks_nothing_and_catches_up_when_it_is_seen(
    browser: Browser, tmp_path: Path, open_page: Callable[..., Page]
) -> None:
    lab = Lab(tmp_path)
    run_id = lab.done(preset("quick"))
    lab.store.close()
    asked: list[int] = []

    def note(request: Request) -> None:
        if "/queue/join" in request.url:
            asked.append(json.loads(request.post_data or "{}")["fn_index"])

    with running(tmp_path) as url:
        page = open_page(url=url)
        history = page.locator("#history")
        expect(history).to_contain_text(f"#{run_id}")
        expect(page.locator("#status [data-rests]")).to_be_visible()
        page.wait_for_timeout(6000)  # what somebody did is long ago
        page.on("request", note)
        page.wait_for_timeout(9000)
        assert 2 <= len(asked) <= 3, "it rests"
        assert len(set(asked)) == 1, "a poll that finds nothing new leads to nothing else"
        page.evaluate(SEEN, "hidden")
        page.wait_for_timeout(500)
        asked.clear()
        store = open_store(tmp_path)
        store.label(run_id, Labels(name="written elsewhere"))
        page.wait_for_timeout(6000)
        assert asked == []
        expect(history).not_to_contain_text("written elsewhere")
        page.evaluate(SEEN, "visible")
        expect(history).to_contain_text("written elsewhere", timeout=3000)
        page.wait_for_timeout(5000)
        store.enqueue(preset("smoke"))
        store.close()
        expect(page.locator("#status [data-rests]")).to_have_count(0, timeout=8000)
        asked.clear()
        page.wait_for_timeout(5000)
        assert asked.count(max(set(asked), key=asked.count)) >= 3, "once a second"


@pytest.mark.slow
def test_more_pages_of_one_browser_than_it_has_connections_all_fill(
    browser: Browser, tmp_path: Path
) -> None:
    """Browsers open six connections to a host. A page that held one for good would stop all others."""
    lab = Lab(tmp_path)
    run_id = lab.done(preset("quick"))
    lab.store.close()
    context = browser.new_context()
    with running(tmp_path) as url:
        pages = [context.new_page() for _ in range(8)]
        for page in pages:
            page.goto(url, timeout=LOADED_MS)
            go(page, "Quantize")
            expect(page.locator("#history")).to_contain_text(f"#{run_id}", timeout=LOADED_MS)
        go(pages[0], "Results")
        expect(pages[0].locator("#results-table")).to_contain_text(f"#{run_id}", timeout=LOADED_MS)
        context.close()
