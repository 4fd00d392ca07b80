"""The page by keyboard and screen reader: axe-core finds nothing grave in any state, every control can be reached."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize, expect

from tests.support.conversations import content, exchange
from tests.support.exported_runs import exportable_run
from tests.ui.lab import Lab, verdicts
from tests.ui.open_app import HANG_S, OpenApp
from tests.ui.pages import LOADED_MS, PHONE, RUN_MS, TABS, WIDE, go, listed_runs
from tests.ui.studio import Studio, running
from upq.config import preset
from upq.jobs.export_folder import Exports, Wanted
from upq.models import load
from upq.store import exports_dir

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


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[str]:
    """An app with several runs, and of the first one models, a check, a conversation and an export."""
    folder = tmp_path_factory.mktemp("furnished")
    lab = Lab(folder)
    run_id = exportable_run(lab.store, load(str(tiny_model_dir)), tiny_model_dir)
    for method in ("rtn", "upq"):
        lab.done(preset("quick", method), name=f"my {method}")
    answers = {"FP16": verdicts(True, True), "INT4": verdicts(True, False)}
    lab.checked(run_id, "builtin", answers | {"INT2": verdicts(False, False)})
    said = (
        "# Because\n\n> of *this*:\n\n```python\nprint(1)\n```\n\n| a | b |\n| - | - |\n| 1 | 2 |"
    )
    lab.store.conversations.save(content(exchange("why?", answer=said), run_id=run_id))
    work = Exports(lab.store, exports_dir(folder)).make(Wanted(run_id, "INT4", "safetensors"))
    assert work
    assert work.ended.wait(HANG_S)
    lab.store.close()
    with running(folder) as url:
        yield url


def show_all_settings(page: Page) -> None:
    page.locator("#advanced button").first.click()
    sections = page.locator(".settings-head button")
    expect(sections.first).to_be_visible()  # `all` waits for nothing
    for section in sections.all():
        section.click()
    expect(page.locator("#set-seed")).to_be_visible()


def show_a_check(page: Page) -> None:
    go(page, "Checks")
    expect(page.locator("#check-flips")).to_contain_text("Flips", timeout=LOADED_MS)
    page.locator("#check-prompts summary").first.click()
    expect(page.locator("#check-prompts .chips li").first).to_be_visible()


def show_several_runs(page: Page) -> None:
    go(page, "Results")
    expect(page.locator("#scatter")).to_contain_text("Pareto front", timeout=LOADED_MS)
    page.locator("#origins summary").first.click()
    expect(page.locator("#origins .command").first).to_be_visible()


def show_a_kept_conversation(page: Page) -> None:
    go(page, "Chat")
    page.locator("#chat-history button").first.click()
    page.locator("#kept li").get_by_text("why?", exact=True).click()
    expect(page.locator("#pane-fp16 .code")).to_be_visible(timeout=LOADED_MS)
    expect(page.locator("#take-along")).to_be_visible()


def show_an_export(page: Page) -> None:
    go(page, "Export")
    expect(page.locator("#export-files section")).to_contain_text("model.safetensors")


STATES = {
    "all settings": show_all_settings,
    "a check": show_a_check,
    "several runs": show_several_runs,
    "a kept conversation": show_a_kept_conversation,
    "an export": show_an_export,
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing_grave_on_a_page_in_use(
    open_page: Callable[..., Page], furnished: str, state: str, size: ViewportSize, theme: str
) -> None:
    page = open_page(size, theme, furnished)
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#1 "), timeout=LOADED_MS)
    STATES[state](page)
    page.wait_for_timeout(1000)  # until all has faded in: axe takes half a colour for too pale
    assert grave_faults(page) == []


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
