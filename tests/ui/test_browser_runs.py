"""The Quantize tab in Chromium: the form refuses and tells, settings are found and put back, runs have names, checks
go first.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support import hub as stand_in
from tests.support.model_cases import poison
from tests.ui.lab import Lab
from tests.ui.pages import LOADED_MS, RUN_MS, fill_form, scrolls_sideways
from tests.ui.studio import Studio, running
from upq.config import CheckConfig, preset
from upq.store import Labels, Store, open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIZES = ((1440, "light"), (1440, "dark"), (1024, "light"), (390, "light"), (390, "dark"))
#: Settings of a small run of the tiny model.
SMALL = {"max rows": "4", "held out": "2"}


@contextmanager
def store_of(studio: Studio) -> Iterator[Store]:
    store = open_store(studio.folder)
    yield store
    store.close()


def start(page: Page, studio: Studio, distill_tokens: int = 0) -> int:
    """Start a small run of the tiny model and return its number. distill_tokens: of INT2, where not the preset's."""
    fill_form(page, studio, SMALL)
    if distill_tokens:
        page.locator("#search-settings").fill("int2.distill.tokens")
        page.locator("#set-int2-distill-tokens input").fill(str(distill_tokens))
        page.keyboard.press("Tab")
        expect(page.locator("#settings-changes")).to_contain_text("int2.distill.tokens")
    page.locator("#start").click()
    line = page.locator("#started")
    expect(line).to_contain_text(re.compile(r"#\d+ (is queued|started|is done)"), timeout=RUN_MS)
    found = re.search(r"#(\d+)", line.text_content() or "")
    assert found
    return int(found[1])


def test_a_mistake_is_one_sentence_at_start_and_makes_no_run(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    with store_of(studio) as store:
        before = len(store.runs(limit=1000))
        page.get_by_label("Path on this machine").check()
        field = page.get_by_label("Hub id, folder or GGUF file")
        for path, words in (("/etc/passwd", "neither a model folder"), ("/no/such", "no file")):
            field.fill(path)
            page.locator("#start").click()
            expect(page.locator("#started .failed")).to_contain_text(words, timeout=LOADED_MS)
        page.get_by_label("Hugging Face hub id").check()
        field.fill("nobody/nothing")
        page.locator("#start").click()
        expect(page.locator("#started .failed")).to_contain_text(
            "nobody/nothing could not be read", timeout=LOADED_MS
        )
        page.screenshot(path=photos / "refused-at-start.png", full_page=True)
        assert len(store.runs(limit=1000)) == before


def test_the_line_below_start_tells_how_the_run_ends(
    open_page: Callable[..., Page], studio: Studio
) -> None:
    page = open_page()
    run_id = start(page, studio)
    line = page.locator("#started")
    expect(line).to_contain_text(f"#{run_id} started", timeout=RUN_MS)
    expect(line).to_contain_text(f"#{run_id} is done", timeout=RUN_MS)


def test_the_line_below_start_tells_why_a_run_failed(
    open_page: Callable[..., Page], studio: Studio, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(studio.model, tmp_path / "damaged"))
    poison(float("nan"))(damaged)
    page = open_page()
    fill_form(page, replace(studio, model=damaged), SMALL)
    page.locator("#start").click()
    failed = page.locator("#started .failed")
    words = re.compile(r"#\d+ failed: .* holds NaN or infinite values")
    expect(failed).to_contain_text(words, timeout=RUN_MS)
    expect(failed.locator(".hint")).to_contain_text("The file is damaged")


def test_a_check_goes_first_and_a_cancelled_run_stays_in_sight(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    run_id = start(page, studio, distill_tokens=5_000_000)
    summary = page.locator("#run-summary")
    expect(summary.locator(".stepper .current")).to_be_visible(timeout=RUN_MS)
    clock = summary.locator(".facts [data-clock=up]")
    before = clock.text_content()
    expect(clock).not_to_have_text(before or "")
    expect(summary.locator(".facts")).to_contain_text("tok/s", timeout=RUN_MS)
    check = CheckConfig(
        suite="builtin",
        precisions=("FP16",),
        run_id=None,
        model=str(studio.model),
        limit=2,
        max_tokens=4,
    )
    with store_of(studio) as store:
        check_id = store.enqueue_check(check)
        words = f"aside for check #{check_id}, goes on afterwards"
        expect(summary).to_contain_text(words, timeout=RUN_MS)
        expect(page.locator("#started")).to_contain_text(f"aside for check #{check_id}")
        page.screenshot(path=photos / "aside.png", full_page=True)
        expect(summary.locator(".stepper .current")).to_be_visible(timeout=RUN_MS)
        assert store.run(check_id).state == "done"
        assert store.run(run_id).crashes == 0
        second = store.enqueue(preset("smoke"))
        page.locator("#cancel").click()
        expect(summary).to_contain_text("Resume goes on from the last checkpoint", timeout=RUN_MS)
        expect(page.locator("#status")).to_contain_text(f"run #{second}", timeout=RUN_MS)
        expect(summary).to_contain_text(f"Run #{run_id} ")
        expect(page.locator("#started")).to_contain_text(f"#{run_id} is cancelled")
        store.request_cancel(second)
        expect(page.locator("#status")).not_to_contain_text(f"run #{second}", timeout=RUN_MS)


def test_settings_are_found_marked_and_put_back_and_start_stays_in_reach(
    open_page: Callable[..., Page], photos: Path
) -> None:
    for width, theme in SIZES:
        page = open_page({"width": width, "height": 844}, theme)
        expect(page.locator("#estimate .facts")).to_be_visible(timeout=LOADED_MS)
        page.locator("#advanced button").first.click()
        shown = page.locator("#advanced .setting:visible")
        expect(shown).to_have_count(0)
        page.locator("#search-settings").fill("calibration")
        expect(page.locator("#settings-found")).to_contain_text(re.compile(r"^\d+ of \d+ settings"))
        assert 0 < shown.count() < page.locator("#advanced .setting").count()
        page.locator("#search-settings").fill("int4 group")
        size = page.locator("#set-int4-group_size")
        size.locator("input").fill("64")
        page.keyboard.press("Tab")
        changes = page.locator("#settings-changes")
        expect(changes).to_contain_text("1 setting differs", timeout=LOADED_MS)
        expect(size).to_have_class(re.compile("changed"))
        expect(page.locator(".settings-head .count").filter(has_text="1 changed")).to_have_count(1)
        changes.locator("summary").click()
        expect(changes.locator(".command")).to_contain_text("--set int4.group_size=64")
        page.locator("#search-settings").fill("")
        page.locator(".settings-head button", has_text="Run").first.click()
        expect(page.locator("#set-seed")).to_be_visible()
        page.locator("#set-seed").scroll_into_view_if_needed()
        expect(page.locator("#start")).to_be_in_viewport()
        page.screenshot(path=photos / f"settings-{width}-{theme}.png")
        assert not scrolls_sideways(page)
        size.locator("button.reset").dispatch_event("click")
        expect(changes).to_contain_text("All settings are those", timeout=LOADED_MS)
        expect(size.locator("input")).to_have_value("32")
        expect(size.locator("button.reset")).to_have_count(0)
        page.close()


def test_runs_are_named_noted_starred_and_found(
    tmp_path: Path, browser: Browser, open_page: Callable[..., Page], photos: Path
) -> None:
    lab = Lab(tmp_path)
    for method in ("rtn", "upq", "rotated_upq"):
        lab.done(preset("quick", method))
    lab.store.label(1, Labels(name="baseline", note="two\nlines <b>"))
    with running(tmp_path) as url:
        page = open_page(url=url)
        expect(page.locator("#run-summary")).to_contain_text("Run #3", timeout=LOADED_MS)
        page.locator("#labels-box button").first.click()
        page.get_by_label("Name", exact=True).fill("best of all")
        page.get_by_label("Note", exact=True).fill("rotated, seed 0")
        page.get_by_label("Starred", exact=True).check()
        expect(page.locator("#history")).to_contain_text("best of all")
        expect(page.locator("#run-summary")).to_contain_text("rotated, seed 0")
        rows = page.locator("#history tbody tr")
        page.on("dialog", lambda dialog: dialog.accept("middle"))
        page.get_by_label("name of run 2: none").click()
        expect(rows.nth(1)).to_contain_text("middle")
        page.reload()
        expect(page.locator("#run-summary h2")).to_contain_text("best of all", timeout=LOADED_MS)
        page.locator("#history-search input, #history-search textarea").fill("lines base")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("#1")
        page.locator("#history-search input, #history-search textarea").fill("")
        page.get_by_label("starred only").check()
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("#3")
        page.get_by_label("star run 3").click()
        expect(page.locator("#history")).to_contain_text("No run fits")
        page.close()
        for width, theme in SIZES:
            page = open_page({"width": width, "height": 900}, theme, url)
            expect(page.locator("#history")).to_contain_text("middle", timeout=LOADED_MS)
            page.locator("#labels-box button").first.click()
            page.screenshot(path=photos / f"labels-{width}-{theme}.png", full_page=True)
            assert not scrolls_sideways(page)


def test_a_slow_hub_is_told_at_once_and_its_late_answer_replaces_nothing(
    tmp_path: Path, browser: Browser, open_page: Callable[..., Page], tiny_model_dir: Path
) -> None:
    with stand_in.running("me", "hf_secret") as hub:
        config = (tiny_model_dir / "config.json").read_bytes()
        hub.models = {f"me/{name}": {"config.json": config} for name in ("slow", "quick")}
        hub.delays["/me/slow"] = 60
        with running(tmp_path, hub=hub.address) as url:
            page = open_page(url=url)
            expected = page.locator("#estimate")
            expect(expected.locator(".facts")).to_be_visible(timeout=LOADED_MS)
            page.get_by_label("Hugging Face hub id").check()
            field = page.get_by_label("Hub id, folder or GGUF file")
            field.fill("me/slow")
            field.blur()
            expect(expected).to_contain_text("Looks for me/slow on the hub.")
            expect(expected).to_contain_text("did not answer within 5 s")
            field.fill("me/slow")
            field.blur()
            field.fill("me/quick")
            field.blur()
            expect(expected.locator(".facts")).to_be_visible(timeout=LOADED_MS)
            page.wait_for_timeout(6000)  # until the slow one has given up
            expect(expected.locator(".facts")).to_be_visible()
            expect(expected).not_to_contain_text("did not answer")
