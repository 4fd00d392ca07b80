"""The page by keyboard and screen reader: axe-core finds nothing grave in any state, every control can be reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.ui.open_app import OpenApp
from tests.ui.pages import LOADED_MS, RUN_MS, TABS, go, listed_runs
from tests.ui.studio import Studio, running

pytestmark = [pytest.mark.browser, pytest.mark.slow]
#: What axe calls a fault that keeps somebody from using the page; it has two more names for lesser ones.
GRAVE = ("serious", "critical")
#: More stops of the Tab key than any tab has.
MOST_STOPS = 400
#: Bytes of the whole page on its first visit, and when something is painted first, milliseconds on a busy machine.
MOST_BYTES, PAINTED_MS = 300_000, 10_000


def grave_faults(page: Page) -> list[str]:
    """What axe finds, as "rule: element"."""
    found: Any = Axe().run(page).response
    return [
        f"{fault['id']}: {place['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in GRAVE
        for place in fault["nodes"]
    ]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[str]:
    with running(tmp_path) as url:
        yield url


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave_before_any_run(
    open_page: Callable[..., Page], empty: str, theme: str
) -> None:
    page = open_page(url=empty, theme=theme)
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(1500)
        assert grave_faults(page) == [], tab


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave_with_a_run_and_its_answers(
    open_page: Callable[..., Page], open_app: OpenApp, theme: str
) -> None:
    page = open_page(url=str(open_app.client.base_url), theme=theme)
    go(page, "Chat")
    page.locator("#message textarea").fill("One, two,")
    page.locator("#send").click()
    for name in ("fp16", "int4", "int2"):
        answer = page.locator(f"#column-{name} .message.answer footer")
        expect(answer).to_contain_text("token", timeout=RUN_MS)
    for view in ("Text", "Token KL", "Words", "Blind"):
        page.locator("#view label", has_text=view).click()
        page.wait_for_timeout(4000)
        assert grave_faults(page) == [], view
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(2500)
        assert grave_faults(page) == [], tab


def test_the_tab_key_reaches_every_control(open_page: Callable[..., Page], studio: Studio) -> None:
    page = open_page()
    listed_runs(page)
    for tab in ("Chat", "Checks"):
        go(page, tab)
        page.wait_for_timeout(1000)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('button, textarea, input, select, a[href]')]
              .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.disabled
                && each.tabIndex >= 0 && each.type !== 'radio').length"""
        )
        reached = set[str]()
        page.locator("body").press("Tab")
        for _ in range(MOST_STOPS):
            name = page.evaluate(
                """() => { const each = document.activeElement;
                  each.dataset.stop ??= String(document.querySelectorAll('[data-stop]').length);
                  return each.tagName === 'BODY' ? '' : each.dataset.stop; }"""
            )
            if not name or name in reached:
                break
            reached.add(name)
            page.keyboard.press("Tab")
        assert len(reached) >= wanted > 0, f"{tab}: {len(reached)} of {wanted} controls"


def test_the_first_visit_is_light(open_page: Callable[..., Page], studio: Studio) -> None:
    page = open_page()
    expect(page.locator("#status .status-line")).to_have_text(
        re.compile("device"), timeout=LOADED_MS
    )
    size, painted = page.evaluate(
        """() => [performance.getEntriesByType('resource')
            .concat(performance.getEntriesByType('navigation'))
            .reduce((sum, each) => sum + each.encodedBodySize, 0),
          performance.getEntriesByName('first-contentful-paint')[0].startTime]"""
    )
    assert painted < PAINTED_MS
    assert size < MOST_BYTES, f"{size:,} bytes"
