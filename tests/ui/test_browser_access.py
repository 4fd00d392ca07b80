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
#: Lesser ones that the page is to be free of as well.
LESSER = ("heading-order", "empty-table-header")
#: More stops of the Tab key than any tab has.
MOST_STOPS = 400
#: Notes how each control looks without the focus; `whatHasTheFocus` tells its number and whether it looks otherwise.
WATCHING = """() => {
  document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important; }</style>');
  const look = (control) => {
    const looks = [];
    for (let each = control; each && looks.length < 20; each = each.parentElement) {
      const { outlineStyle, outlineColor, borderColor, boxShadow, textDecorationLine } = getComputedStyle(each);
      looks.push(outlineStyle === 'none' ? '' : outlineColor, borderColor, boxShadow, textDecorationLine);
    }
    return looks.join(' ');
  };
  const controls = [...document.querySelectorAll('button, textarea, input, select, summary, a[href], [tabindex]')];
  const before = new Map(controls.map((control, at) => [control, [at, look(control)]]));
  window.whatHasTheFocus = () => {
    const control = document.activeElement;
    if (control === document.body) return null;
    const [at, plain] = before.get(control) ?? [-1, ''];
    return [at, look(control) !== plain, control.outerHTML.slice(0, 120)];
  };
}"""
#: Bytes of the whole page on its first visit, and when something is painted first, milliseconds on a busy machine.
MOST_BYTES, PAINTED_MS = 300_000, 10_000


def grave_faults(page: Page) -> list[str]:
    """What axe finds, as "rule: element"."""
    found: Any = Axe().run(page).response
    return [
        f"{fault['id']}: {place['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in GRAVE or fault["id"] in LESSER
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


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(
    open_page: Callable[..., Page], studio: Studio
) -> None:
    page = open_page()
    listed_runs(page)
    for tab in ("Chat", "Checks", "Quantize"):
        go(page, tab)
        page.wait_for_timeout(1000)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('button, textarea, input, select, a[href]')]
              .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.disabled
                && each.tabIndex >= 0 && each.type !== 'radio').length"""
        )
        page.evaluate("document.activeElement.blur()")
        page.evaluate(WATCHING)
        reached = set[int]()
        page.locator("body").press("Tab")
        for _ in range(MOST_STOPS):
            stop = page.evaluate("whatHasTheFocus()")
            if stop is None or stop[0] in reached:
                break
            number, is_seen, control = stop
            assert is_seen, f"{tab}: the focus is not seen at {control}"
            reached.add(number)
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
            .filter((each) => !each.name.includes('/queue/data'))  // streams of events, which go on
            .reduce((sum, each) => sum + each.encodedBodySize, 0),
          performance.getEntriesByName('first-contentful-paint')[0].startTime]"""
    )
    assert painted < PAINTED_MS
    assert size < MOST_BYTES, f"{size:,} bytes"
