"""Checks and Results in Chromium: charts that are read by keyboard, filters, and what a first visitor finds there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.lab import Lab, marks
from tests.ui.pages import RUN_MS, go, scrolls_sideways
from tests.ui.studio import running
from upq.config import preset
from upq.jobs.shipped import NAME
from upq.models import LoadedModel

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SCREENS = [(1440, "light"), (1024, "dark"), (390, "light")]


def test_results_are_filtered_and_read_without_a_pointer(
    open_page: Callable[..., Page], photos: Path, tmp_path: Path
) -> None:
    lab = Lab(tmp_path)
    for method, scale in (("rtn", 9.0), ("upq", 1.0), ("rotated_upq", 0.5)):
        lab.done(preset("quick", method), name=f"my {method}", scale=scale)
    lab.checked(3, "mmlu", {"FP16": marks(True, True, False), "INT2": marks(True, False, False)})
    lab.store.close()
    with running(tmp_path) as url:
        for width, theme in SCREENS:
            page = open_page({"width": width, "height": 900}, theme, url)
            go(page, "Results")
            expect(page.locator("#scatter")).to_contain_text("Pareto front: #3 INT2")
            page.screenshot(path=photos / f"results-{width}-{theme}.png", full_page=True)
            assert not scrolls_sideways(page)
        page = open_page(url=url)
        go(page, "Results")
        rows = page.locator("#results-table tbody tr")
        expect(rows).to_have_count(1 + 3 * 2 + 3 * 2)
        page.locator("#result-filters").get_by_label("Rotated UPQ").check()
        page.locator("#result-filters").get_by_label("INT2").check()
        expect(rows).to_have_count(2)  # the run and its own RTN
        expect(rows.first).to_contain_text("my rotated_upq")
        read_by_keyboard(page)


def read_by_keyboard(page: Page) -> None:
    """Go through a chart of curves: it is one stop of the Tab key, and the arrow keys show its values."""
    readings = page.locator("#kl-minutes .reading")
    readings.first.locator("input").focus()
    page.keyboard.press("ArrowRight")
    second = readings.nth(1)
    expect(second.locator("input")).to_be_focused()
    expect(second.locator(".tip")).to_be_visible()
    expect(second.locator(".tip")).to_contain_text("#3 Rotated UPQ INT2")
    expect(readings.first.locator(".tip")).to_be_hidden()
    page.keyboard.press("Tab")
    summary = page.locator("#kl-minutes .values summary")
    expect(summary).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#kl-minutes .values table")).to_be_visible()


def test_a_first_visitor_finds_checks_and_results_alive(
    open_page: Callable[..., Page], photos: Path, tmp_path: Path, bundled: LoadedModel
) -> None:
    with running(tmp_path, shipped=True) as url:
        page = open_page(url=url)
        chosen = page.locator("#run-selector input")
        expect(chosen).to_have_value(re.compile(NAME), timeout=3 * RUN_MS)
        go(page, "Checks")
        expect(page.locator("#check-totals")).to_contain_text("INT2")
        page.locator("#check-selector input").click()
        page.get_by_role("option", name="built-in").click()
        expect(page.locator("#check-filter")).to_contain_text(re.compile(r"cut \d+"))
        expect(page.locator("#check-filter input:checked")).to_have_value("flipped")
        page.locator("#check-prompts summary").first.click()
        expect(page.locator("#check-prompts .chips li").first).to_be_visible()
        page.screenshot(path=photos / "shipped-checks.png", full_page=True)
        page.locator("#check-filter label", has_text="repeats").click()
        expect(page.locator("#check-prompts")).to_contain_text("repeats")
        with page.expect_download() as download:
            page.locator("#check-csv").click()
        assert "finish" in download.value.path().read_text(encoding="utf-8").splitlines()[0]
        page.locator("#check-selector input").click()
        page.get_by_role("option", name="IFEval").click()
        expect(page.locator("#check-origin")).to_contain_text("commit")
        expect(page.locator("#check-prompts")).not_to_contain_text("prompt 1")
        go(page, "Results")
        for column in ("checks", "IFEval"):
            expect(page.locator("#results-table thead")).to_contain_text(column)
        page.screenshot(path=photos / "shipped-results.png", full_page=True)
