"""Conversations in Chromium: kept, found, opened in a second window, taken along, shared by a link.

The columns answer with a tiny model; what it says does not matter here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.conversations import content, exchange
from tests.ui.pages import HOSTILE, LOADED_MS, PHONE, RUN_MS, downloaded, go, scrolls_sideways
from tests.ui.studio import running
from tests.unit.jobs.test_served import stored_run
from upq.models import LoadedModel
from upq.store import Store, open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]
COLUMNS = ("fp16", "int4", "int2")


@pytest.fixture
def lab(tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path) -> Iterator[tuple[str, Store]]:
    """An app with two runs of the tiny model; its address, and its store."""
    with closing(open_store(tmp_path)) as store:
        for _ in range(2):
            stored_run(store, tiny, tiny_model_dir)
        with running(tmp_path) as url:
            yield url, store


def ask(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.locator("#send").click()
    is_answered(page, text)


def is_answered(page: Page, text: str) -> None:
    """Wait until every column has answered a question."""
    for name in COLUMNS:
        expect(page.locator(f"#pane-{name} .message.user .text").last).to_have_text(text)
        expect(page.locator(f"#pane-{name} .answer footer").last).to_contain_text(
            "token", timeout=RUN_MS
        )
    expect(page.locator("#send")).to_have_text("Send")


def unfold(page: Page) -> None:
    page.locator("#chat-history button").first.click()
    expect(page.locator("#kept-search")).to_be_visible()


def questions(page: Page, name: str = "int2") -> list[str]:
    return page.locator(f"#pane-{name} .message.user .text").all_text_contents()


def test_a_reload_and_a_second_window_show_the_same_conversation(
    lab: tuple[str, Store], watched: Callable[..., Page], photos: Path
) -> None:
    url, _ = lab
    page = watched(f"{url}?tab=chat&run=1")
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#1 "), timeout=LOADED_MS)
    page.locator("#decoding button").first.click()
    page.get_by_label("number input for Longest answer, tokens").first.fill("16")
    page.keyboard.press("Tab")
    ask(page, "one")
    ask(page, "two")
    expect(page).to_have_url(re.compile(r"tab=chat&run=1&conversation=1$"))
    shown = page.locator("#pane-int2 .conversation").inner_text()
    page.reload()
    for window in (page, watched(page.url, PHONE)):
        expect(window.locator("#pane-fp16 .message.user").first).to_contain_text(
            "one", timeout=LOADED_MS
        )
        expect(window.locator("#run-selector input")).to_have_value(re.compile("#1 "))
        assert not scrolls_sideways(window)
    assert page.locator("#pane-int2 .conversation").inner_text() == shown
    page.locator("#decoding button").first.click()
    expect(page.get_by_label("number input for Longest answer, tokens").first).to_have_value("16")
    ask(page, "three")
    assert questions(page) == ["one", "two", "three"]
    page.locator("#new-chat").click()
    expect(page).not_to_have_url(re.compile("conversation="))
    expect(page).to_have_url(re.compile("tab=chat&run=1"))
    page.screenshot(path=photos / "history-new-chat.png", full_page=True)


def test_a_conversation_is_found_renamed_opened_and_deleted(
    lab: tuple[str, Store], watched: Callable[..., Page], photos: Path
) -> None:
    url, store = lab
    store.conversations.save(content(exchange("sky", answer="Rayleigh scattering"), run_id=2))
    store.conversations.save(content(exchange(HOSTILE, answer=HOSTILE), run_id=1))
    store.conversations.save(content(exchange("gone"), run_id=99))
    page = watched(f"{url}?tab=chat")
    unfold(page)
    lines = page.locator("#kept li")
    expect(lines).to_have_count(3, timeout=LOADED_MS)
    expect(page.locator("#kept img")).to_have_count(0)
    page.locator("#kept-search textarea, #kept-search input").fill("RAYLEIGH")
    expect(lines).to_have_count(1)
    answers = ["sea"]
    page.on("dialog", lambda dialog: dialog.accept(answers.pop() if answers else None))
    lines.get_by_text("rename").click()
    expect(lines).to_contain_text("sea")
    lines.get_by_text("sea", exact=True).click()
    expect(page.locator("#pane-int2 .answer .text")).to_have_text("RAYLEIGH SCATTERING")
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#2 "))
    expect(page.locator("#pane-int4")).to_contain_text("Ask something.")
    expect(lines).to_contain_text("open now")
    page.screenshot(path=photos / "history-open.png", full_page=True)
    lines.get_by_text("delete").click()
    expect(page.locator("#kept")).to_contain_text("No conversation holds")
    expect(page.locator("#pane-int2")).to_contain_text("Ask something.")
    page.locator("#kept-search textarea, #kept-search input").fill("gone")
    lines.get_by_text("gone", exact=True).click()
    expect(page.locator("#history-note")).to_contain_text("Run 99 is gone")
    expect(page.locator("#pane-fp16 .answer .text")).to_have_text("because")
    page.locator("#message textarea").fill("more")
    page.locator("#send").click()
    expect(page.locator("#chat-problem")).to_contain_text("not gone on with")
    page.screenshot(path=photos / "history-gone.png", full_page=True)
    page.locator("#kept-search textarea, #kept-search input").fill("")
    page.locator("#kept").get_by_text("Delete all").click()
    expect(page.locator("#history-note")).to_contain_text("All 2 conversations are deleted.")
    assert store.conversations.find().total == 0


def test_a_conversation_and_one_question_leave_as_files(
    browser: Browser, lab: tuple[str, Store], watched: Callable[..., Page], photos: Path
) -> None:
    url, store = lab
    said = [exchange("one", answer=HOSTILE), exchange("two")]
    store.conversations.save(content(*said, run_id=1))
    page = watched(f"{url}?tab=chat&conversation=1")
    unfold(page)
    expect(page.locator("#take-along")).to_be_visible(timeout=LOADED_MS)
    for name, ending in (("JSON lines", "jsonl"), ("HTML", "html"), ("Markdown", "md")):
        page.locator("#take-as label", has_text=name).click()
        text = downloaded(page, "#take-file", f"upq-conversation-1.{ending}")
        assert "two" in text
        if ending == "html":
            assert requests_of(browser.new_page(), text, photos) == []
    page.locator("#take-part input").click()
    page.get_by_role("option", name="question 2: two").click()
    assert "Question 1" not in downloaded(page, "#take-file", "upq-conversation-1-question-2.md")


def requests_of(alone: Page, text: str, photos: Path) -> list[str]:
    """Show a page that was downloaded; what it asks for."""
    asked: list[str] = []
    alone.on("request", lambda request: asked.append(request.url))
    alone.set_content(text)
    expect(alone.locator(".asked").first).to_have_text("one")
    expect(alone.locator("img, script, form")).to_have_count(0)
    alone.screenshot(path=photos / "conversation-page.png", full_page=True)
    alone.close()
    return asked


def test_a_link_fills_the_box_and_sends_nothing(
    lab: tuple[str, Store], watched: Callable[..., Page], photos: Path
) -> None:
    url, store = lab
    page = watched(f"{url}?tab=chat&run=1")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#1 "), timeout=LOADED_MS)
    page.locator("#copy-link").click()
    expect(page.locator("#link")).to_contain_text("The message is empty.")
    page.locator("#message textarea").fill("Why & <b>how</b>?\nTwo lines.")
    page.locator("#copy-link").click()
    expect(page.locator("#link .said")).to_have_text("The link is copied.")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.locator("#link .command").inner_text()
    other = watched(link)
    expect(other.locator("#message textarea")).to_have_value(
        "Why & <b>how</b>?\nTwo lines.", timeout=LOADED_MS
    )
    expect(other.locator("#history-note")).to_contain_text("nothing was sent")
    expect(other.locator("#history-note")).to_contain_text("exactly the same")
    other.screenshot(path=photos / "link-opened.png", full_page=True)
    assert store.conversations.find().total == 0


def test_a_greedy_question_of_a_link_is_answered_with_the_same_words(
    lab: tuple[str, Store], watched: Callable[..., Page]
) -> None:
    url, _ = lab
    page = watched(f"{url}?tab=chat&run=1")
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#1 "), timeout=LOADED_MS)
    page.locator("#decoding > button").click()
    page.get_by_label("number input for Longest answer, tokens").first.fill("16")
    page.keyboard.press("Tab")
    ask(page, "one")
    page.locator("#copy-link").click()
    expect(page.locator("#link .command")).to_contain_text("max_tokens=16")
    other = watched(page.locator("#link .command").inner_text())
    expect(other.locator("#message textarea")).to_have_value("one", timeout=LOADED_MS)
    expect(other.locator("#decoding > button")).to_contain_text("greedy, at most 16 tokens")
    other.locator("#send").click()
    is_answered(other, "one")
    for name in COLUMNS:
        said = page.locator(f"#pane-{name} .answer .text").inner_text()
        assert other.locator(f"#pane-{name} .answer .text").inner_text() == said


def test_nonsense_in_an_address_is_left_out_and_said(
    lab: tuple[str, Store], watched: Callable[..., Page]
) -> None:
    url, _ = lab
    page = watched(f"{url}?tab=chat&run=77&conversation=abc&prompt=Hi&temperature=9")
    note = page.locator("#chat-problem")
    expect(note).to_contain_text("Left out of this address", timeout=LOADED_MS)
    for words in ("run 77 is not here", "conversation is 'abc'", "temperature is 9"):
        expect(note).to_contain_text(words)
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#2 "))
    page = watched(f"{url}?tab=chat&conversation=5")
    expect(page.locator("#history-note")).to_contain_text(
        "There is no conversation 5.", timeout=LOADED_MS
    )


def test_the_tab_is_in_the_address_and_gradios_own_parameters_stay(
    lab: tuple[str, Store], watched: Callable[..., Page]
) -> None:
    url, _ = lab
    page = watched(f"{url}?__theme=dark")
    for name in ("Results", "Export", "Chat"):
        go(page, name)
        expect(page).to_have_url(re.compile(rf"__theme=dark.*tab={name.lower()}"))
    page.reload()
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute(
        "aria-selected", "true", timeout=LOADED_MS
    )
