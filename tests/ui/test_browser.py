"""The app in Chromium, as a person uses it: start, watch, reload, cancel, chat, check, on wide and narrow screens.

Every state is photographed into the folder of the `photos` fixture (printed with -rA), to be looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.exported_runs import exportable_run
from tests.ui.lab import Lab, marks
from tests.ui.pages import (
    HOSTILE,
    LOADED_MS,
    RUN_MS,
    TABS,
    finished_run,
    go,
    listed_runs,
    scrolls_sideways,
    start_run,
)
from tests.ui.studio import Studio, running
from upq.config import preset
from upq.jobs.shipped import NAME
from upq.models import LoadedModel
from upq.store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_first_visit_says_what_to_do_next_everywhere(
    browser: Browser, tmp_path: Path, photos: Path, open_page: Callable[..., Page]
) -> None:
    with running(tmp_path) as url:
        page = open_page(url=url)
        expect(page.locator("#run-summary")).to_contain_text("press Start")
        expect(page.locator("#estimate .facts")).to_contain_text("MB", timeout=LOADED_MS)
        page.screenshot(path=photos / "empty-quantize.png", full_page=True)
        go(page, "Chat")
        expect(page.locator("#pane-fp16")).to_contain_text("Ask something.")
        expect(page.locator("#pane-int4")).to_contain_text("No INT4 yet.")
        page.screenshot(path=photos / "empty-chat.png", full_page=True)
        go(page, "Checks")
        expect(page.locator("#check-totals")).to_contain_text("press Run")
        page.screenshot(path=photos / "empty-checks.png", full_page=True)
        go(page, "Results")
        expect(page.locator("#results-table")).to_contain_text("No results yet.")
        page.screenshot(path=photos / "empty-results.png", full_page=True)
        go(page, "Export")
        expect(page.locator("#export-run")).to_contain_text("Nothing to export yet.")
        page.screenshot(path=photos / "empty-export.png", full_page=True)


def test_a_first_visitor_chats_with_the_shipped_models(
    browser: Browser,
    tmp_path: Path,
    photos: Path,
    open_page: Callable[..., Page],
    bundled: LoadedModel,
) -> None:
    with running(tmp_path, shipped=True) as url:
        page = open_page(url=url)
        chosen = page.locator("#run-selector input")
        expect(chosen).to_have_value(re.compile(NAME), timeout=RUN_MS)
        expect(page.locator("#run-summary")).to_contain_text(NAME)
        page.screenshot(path=photos / "shipped-quantize.png", full_page=True)
        go(page, "Chat")
        page.locator("#message textarea").fill("What is the capital of France?")
        page.locator("#send").click()
        for name in ("fp16", "int4", "int2"):
            answer = page.locator(f"#pane-{name} .answer footer")
            expect(answer).to_contain_text("token", timeout=RUN_MS)
        page.screenshot(path=photos / "shipped-chat.png", full_page=True)
        go(page, "Results")
        expect(page.locator("#results-table")).to_contain_text("INT2")
        page.screenshot(path=photos / "shipped-results.png", full_page=True)


def test_a_model_that_cannot_be_quantized_is_refused_before_start(
    open_page: Callable[..., Page], photos: Path, tmp_path: Path
) -> None:
    page = open_page()
    page.get_by_label("Path on this machine").check()
    field = page.locator("#model-text textarea, #model-text input").first
    field.fill(str(tmp_path))
    field.blur()
    expect(page.locator("#estimate .failed")).to_contain_text("config.json", timeout=LOADED_MS)
    page.screenshot(path=photos / "refused.png", full_page=True)


def test_a_run_survives_a_reload_and_finishes(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    start_run(page, studio, {"max rows": "4", "held out": "2", "checkpoint seconds": "2"})
    expect(page.locator("#run-summary .stepper .current")).to_be_visible(timeout=RUN_MS)
    page.screenshot(path=photos / "running-quantize.png", full_page=True)
    page.reload()
    expect(page.locator("#run-summary")).to_contain_text("tiny-llama", timeout=LOADED_MS)
    expect(page.locator("#run-summary")).to_contain_text("Done.", timeout=RUN_MS)
    expect(page.locator("#run-charts .bar").first).to_be_visible()
    expect(page.locator("#history")).to_contain_text("done")
    page.locator("#log-box button").first.click()
    expect(page.locator("#log-box .log")).to_contain_text("INT2")
    page.screenshot(path=photos / "done-quantize.png", full_page=True)
    go(page, "Results")
    expect(page.locator("#results-table")).to_contain_text("RTN INT2")
    with page.expect_download() as download:
        page.locator("#csv").click()
    table = download.value.path().read_text()
    assert table.startswith("run,model,method,")
    assert "RTN INT4" in table
    page.screenshot(path=photos / "done-results.png", full_page=True)


def test_a_run_can_be_cancelled_resumed_and_deleted(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    start_run(page, studio, {"max rows": "4", "held out": "2", "tokens": "5000000"})
    expect(page.locator("#run-summary .stepper .current")).to_be_visible(timeout=RUN_MS)
    page.locator("#cancel").click()
    expect(page.locator("#run-summary")).to_contain_text("Cancelled.", timeout=RUN_MS)
    page.screenshot(path=photos / "cancelled.png", full_page=True)
    page.locator("#resume").click()
    expect(page.locator("#run-summary .stepper .current")).to_be_visible(timeout=RUN_MS)
    page.locator("#cancel").click()
    expect(page.locator("#run-summary")).to_contain_text("Cancelled.", timeout=RUN_MS)
    before = page.locator("#history tbody tr").count()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#history tbody tr").first.get_by_text("delete").click()
    expect(page.locator("#history-message")).to_contain_text("is deleted")
    expect(page.locator("#history tbody tr")).to_have_count(before - 1)


def test_three_columns_answer_and_differences_are_marked(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    finished_run(page, studio)
    go(page, "Chat")
    page.locator("#message textarea").fill("hello there")
    page.locator("#send").click()
    for name in ("fp16", "int4", "int2"):
        expect(page.locator(f"#pane-{name} .message.user .text")).to_have_text("hello there")
        expect(page.locator(f"#pane-{name} .answer footer")).to_contain_text(
            "token", timeout=RUN_MS
        )
        expect(page.locator(f"#head-{name}")).to_contain_text("tok/s")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#head-fp16 .backend")).to_have_text(re.compile("native|torch"))
    expect(page.locator("#head-fp16")).to_contain_text("loaded in")
    page.screenshot(path=photos / "chat.png", full_page=True)
    page.get_by_label("Words").check()
    expect(page.locator("#pane-int2 .agreement")).to_contain_text("FP16")
    page.screenshot(path=photos / "chat-difference.png", full_page=True)


def test_a_message_sent_at_once_after_choosing_a_run_goes_to_that_run(
    open_page: Callable[..., Page], studio: Studio, bundled: LoadedModel
) -> None:
    page = open_page()
    finished_run(page, studio)
    go(page, "Chat")
    selector, box = page.locator("#run-selector input"), page.locator("#message textarea")
    for question, run in (("one", "FP16 only"), ("two", "tiny"), ("three", "FP16 only")):
        box.fill(question)
        selector.click()
        page.get_by_role("option", name=run).first.click()
        box.press("Enter")
        said = page.locator("#pane-fp16 .message.user .text")
        expect(said).to_have_text([question], timeout=RUN_MS)
    expect(page.locator("#pane-fp16 .answer footer")).to_contain_text("token", timeout=RUN_MS)
    expect(page.locator("#pane-int4")).to_contain_text("No INT4 yet.")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#pane-fp16 .message.user .text")).to_have_text(["three"])


def test_stop_is_quick_and_keeps_what_was_said(
    open_page: Callable[..., Page], bundled: LoadedModel, photos: Path
) -> None:
    page = open_page()
    selector = page.locator("#run-selector input")
    if "done" in listed_runs(page):
        expect(selector).to_have_value(re.compile("#"), timeout=LOADED_MS)
        selector.click()
        page.get_by_role("option", name="FP16 only").click()
    go(page, "Chat")
    page.get_by_label("one at a time").check()
    page.locator("#message textarea").fill(
        "Write a long story about a lost umbrella, at least 600 words."
    )
    page.keyboard.press("Enter")
    column = page.locator("#pane-fp16 .answer")
    expect(column.locator(".text")).to_have_text(re.compile(r"\w{3,}"), timeout=RUN_MS)
    expect(page.locator("#head-fp16")).to_contain_text("dequantised from Q4_1")
    expect(page.locator("#pane-int2")).to_contain_text("No INT2 yet.")
    page.screenshot(path=photos / "chat-streaming.png", full_page=True)
    page.locator("#stop-fp16").click()
    expect(column.locator("footer")).to_contain_text("stopped before its end", timeout=5000)
    expect(page.locator("#send")).to_have_text("Send")
    page.screenshot(path=photos / "chat-stopped.png", full_page=True)
    page.locator("#new-chat").click()
    expect(page.locator("#pane-fp16")).to_contain_text("Ask something.")


def test_hostile_text_stays_text(
    open_page: Callable[..., Page], studio: Studio, photos: Path, strangers: list[str]
) -> None:
    page = open_page()
    page.on("dialog", lambda dialog: strangers.append(f"dialog: {dialog.message}"))
    finished_run(page, studio)
    go(page, "Chat")
    page.locator("#message textarea").fill(HOSTILE)
    page.locator("#send").click()
    for name in ("fp16", "int4", "int2"):
        pane = page.locator(f"#pane-{name}")
        expect(pane.locator(".message.user .text")).to_have_text(HOSTILE)
        expect(pane.locator("img, form, input, script")).to_have_count(0)
        expect(pane.locator(".answer footer")).to_contain_text("token", timeout=RUN_MS)
    page.screenshot(path=photos / "chat-hostile.png", full_page=True)


def test_injected_markup_could_not_call_home_either(
    open_page: Callable[..., Page], strangers: list[str]
) -> None:
    page = open_page()
    refused = page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
          const image = new Image();
          image.src = 'http://x.invalid/?q=1';
        })"""
    )
    assert refused == "img-src"
    strangers[:] = [entry for entry in strangers if not entry.startswith("http://x.invalid/")]


def test_checks_run_and_show_chips_totals_and_reasons(
    open_page: Callable[..., Page], studio: Studio, photos: Path
) -> None:
    page = open_page()
    finished_run(page, studio)
    go(page, "Checks")
    page.get_by_label("number input for Prompts").fill("4")
    page.keyboard.press("Tab")
    page.get_by_label("number input for Longest answer, tokens").last.fill("16")
    page.keyboard.press("Tab")
    page.locator("#run-checks").click()
    expect(page.locator("#check-started")).to_contain_text("Check run")
    expect(page.locator("#check-summary")).to_contain_text("Done.", timeout=RUN_MS)
    for precision in ("FP16", "INT4", "INT2"):
        expect(page.locator("#check-totals")).to_contain_text(precision)
    expect(page.locator("#check-flips")).to_contain_text("Flips")
    expect(page.locator("#check-filter input:checked")).to_have_value("flipped")
    page.locator("#check-filter label", has_text="all").click()
    page.locator("#check-prompts details").first.locator("summary").click()
    expect(page.locator("#check-prompts .chips li").first).to_be_visible()
    page.screenshot(path=photos / "checks.png", full_page=True)
    page.locator("#check-filter").get_by_label("failed").check()
    expect(page.locator("#check-prompts")).to_contain_text("prompt")


def test_runs_are_compared_sorted_and_reported(
    browser: Browser, open_page: Callable[..., Page], photos: Path, tmp_path: Path
) -> None:
    lab = Lab(tmp_path)
    for method, scale in (("rtn", 9.0), ("upq", 1.0), ("rotated_upq", 0.5)):
        lab.done(preset("quick", method), name=HOSTILE, scale=scale)
    lab.checked(3, "mmlu", {"FP16": marks(True, True, False), "INT2": marks(True, False, False)})
    lab.store.close()
    with running(tmp_path) as url:
        for width, theme in ((1440, "light"), (1440, "dark"), (390, "light")):
            page = open_page({"width": width, "height": 900}, theme, url)
            go(page, "Results")
            expect(page.locator("#scatter")).to_contain_text("Pareto front: #3 INT2")
            expect(page.locator("#report")).to_be_visible()
            page.screenshot(path=photos / f"compare-{width}-{theme}.png", full_page=True)
            assert not scrolls_sideways(page)
        page = open_page(url=url)
        go(page, "Results")
        page.locator("#measure").get_by_label("MMLU").check()
        expect(page.locator("#scatter")).to_contain_text("MMLU accuracy against size")
        expect(page.locator("#differences")).to_contain_text("int2.rotation")
        first = page.locator("#results-table tbody tr").first
        by_kl = page.locator("#results-table button.sort", has_text=re.compile("^KL$"))
        by_kl.click()
        expect(first).to_contain_text("FP16")
        by_kl.click()
        expect(first).to_contain_text("#1")
        expect(first).to_contain_text("RTN INT2")
        with page.expect_download() as download:
            page.locator("#report").click()
        report = download.value.path().read_text(encoding="utf-8")
        page.locator("#compare-runs .token-remove").first.click()
        expect(page.locator("#origins details")).to_have_count(2)
        alone = browser.new_page()
        asked: list[str] = []
        alone.on("request", lambda request: asked.append(request.url))
        alone.set_content(report)
        expect(alone.locator(".headline")).to_contain_text("#3 INT2")
        expect(alone.locator("img, script, form")).to_have_count(0)
        alone.screenshot(path=photos / "report.png", full_page=True)
        alone.emulate_media(media="print")
        alone.screenshot(path=photos / "report-print.png", full_page=True)
        alone.close()
        assert asked == []


def test_files_are_made_downloaded_copied_and_deleted(
    tmp_path: Path,
    tiny: LoadedModel,
    tiny_model_dir: Path,
    open_page: Callable[..., Page],
    photos: Path,
) -> None:
    store = open_store(tmp_path)
    exportable_run(store, tiny, tiny_model_dir)
    store.close()
    with running(tmp_path) as url:
        page = open_page(url=url)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        expect(page.locator("#run-selector input")).to_have_value(re.compile("#1"))
        go(page, "Export")
        row = page.locator("#export-formats tr", has_text="16-bit safetensors")
        expect(row).to_be_visible(timeout=LOADED_MS)
        of_int4 = page.locator("#export-formats").inner_text()
        page.locator("#export-precision label", has_text="INT2").click()
        # Rows move when the formats of INT2 are drawn, and a click would meet another one's button.
        expect(page.locator("#export-formats")).not_to_have_text(of_int4, use_inner_text=True)
        row.get_by_text("Make files").click(timeout=LOADED_MS)
        made = page.locator("#export-files section")
        expect(made).to_contain_text("run-1-INT2-safetensors", timeout=LOADED_MS)
        expect(row).to_contain_text("made")
        page.screenshot(path=photos / "export-made.png", full_page=True)
        with page.expect_download() as download:
            made.get_by_text("model.safetensors").click()
        kept = tmp_path / "exports" / "run-1-INT2-safetensors" / "model.safetensors"
        assert download.value.path().read_bytes() == kept.read_bytes()
        made.locator(".copied", has_text="vllm serve").get_by_text("Copy").click()
        expect(made.get_by_text("Copied")).to_be_visible()
        assert "vllm serve" in page.evaluate("navigator.clipboard.readText()")
        page.on("dialog", lambda dialog: dialog.accept())
        made.get_by_text("Delete files").click()
        expect(made).to_have_count(0)
        assert not kept.parent.exists()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_no_screen_scrolls_sideways(
    open_page: Callable[..., Page], photos: Path, width: int, theme: str
) -> None:
    page = open_page({"width": width, "height": 900 if width > 500 else 844}, theme)
    listed_runs(page)
    for tab in TABS:
        go(page, tab)
        page.wait_for_timeout(700)
        page.screenshot(path=photos / f"{tab.lower()}-{width}-{theme}.png", full_page=True)
        assert not scrolls_sideways(page), f"{tab} at {width}"
