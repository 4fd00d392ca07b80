"""The chat in Chromium, as a person uses it: the first minute, questions once more, views, a phone, a screen reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, ViewportSize, expect

from tests.ui.open_app import OpenApp
from tests.ui.pages import LOADED_MS, PHONE, RUN_MS, WIDE, scrolls_sideways
from tests.ui.studio import running
from upq.models import LoadedModel

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = ("fp16", "int4", "int2")
#: Below it, the head of a column is one line. Pixels.
ONE_LINE_PX = 60
#: Notes all that a screen reader is told of answers, in the page's `heard`.
HEARD = """() => {
  const region = document.querySelector('#announced [aria-live]');
  window.heard = [];
  new MutationObserver(() => heard.push(region.textContent.trim()))
    .observe(region, { childList: true, subtree: true, characterData: true });
}"""


@pytest.fixture
def chat(watched: Callable[..., Page], open_app: OpenApp) -> Callable[..., Page]:
    """Open a page of the app with one finished run of a tiny model; it lands on Chat."""

    def at(size: ViewportSize = WIDE) -> Page:
        page = watched(str(open_app.client.base_url), size)
        chosen = page.locator("#run-selector input")
        expect(chosen).to_have_value(re.compile("#"), timeout=LOADED_MS)
        expect(page.locator("#pane-int2")).to_contain_text("Ask something.", timeout=LOADED_MS)
        return page

    return at


def ask(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def is_answered(page: Page, answers: int = 1) -> None:
    """Wait until every column has so many answers."""
    for name in NAMES:
        footers = page.locator(f"#pane-{name} .answer > footer")
        expect(footers).to_have_count(answers, timeout=RUN_MS)
    expect(page.locator("#send")).to_have_text("Send")


def height(element: Locator) -> float:
    box = element.bounding_box()
    assert box
    return box["height"]


def asked(page: Page, name: str = "int2") -> list[str]:
    return page.locator(f"#pane-{name} .message.user .text").all_inner_texts()


def test_a_page_without_a_packed_model_lands_on_quantize_and_a_reload_is_no_error(
    tmp_path: Path, watched: Callable[..., Page], bundled: LoadedModel
) -> None:
    with running(tmp_path) as url:
        page = watched(url)
        expect(page.locator("#start")).to_be_visible()
        page.get_by_role("tab", name="Chat").click()
        ask(page, "Write a long story about a lost umbrella, at least 600 words.")
        answer = page.locator("#pane-fp16 .answer .text")
        faults: list[str] = []
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        for _ in range(2):
            expect(answer).to_have_text(re.compile(r"\w{3,}"), timeout=RUN_MS)
            page.reload()
            faults.clear()  # the page that goes away complains of its answer, which nobody sees
            expect(page.locator("#status .status-line")).to_be_visible(timeout=LOADED_MS)
            page.get_by_role("tab", name="Chat").click()
            page.locator("#decoding > button").click()
            limit = page.locator("#decoding").get_by_label("number input for Longest answer")
            limit.fill("2048")
            ask(page, "Write a long story about a lost umbrella, at least 600 words.")
        expect(answer).to_have_text(re.compile(r"\w{3,}"), timeout=RUN_MS)
        expect(page.locator("#send")).to_have_text("Stop")
        page.locator("#send").click()
        expect(page.locator("#pane-fp16 .answer > footer")).to_contain_text(
            "stopped before its end"
        )
        expect(page.locator("#send")).to_have_text("Send")
        assert faults == []
    log = (tmp_path / "app.log").read_text()
    assert "Traceback" not in log, log  # a reload is no error


def test_with_a_packed_model_a_page_lands_on_chat_and_each_head_is_one_line(
    chat: Callable[..., Page], photos: Path
) -> None:
    page = chat()
    head = page.locator("#head-int2")
    assert height(head) < ONE_LINE_PX
    expect(head.locator(".details")).to_be_hidden()
    ask(page, "hello")
    is_answered(page)
    page.locator("#head-int2 summary").focus()
    page.keyboard.press("Enter")
    expect(head.locator(".backend")).to_have_text(re.compile("native|torch"))
    expect(head).to_contain_text("speed while sharing")
    page.screenshot(path=photos / "chat-details.png", full_page=True)


def test_an_example_is_asked_and_a_draft_stays(chat: Callable[..., Page]) -> None:
    page = chat()
    page.locator("#message textarea").fill("my own draft")
    example = page.locator("#examples button").first
    text = example.inner_text()
    example.click()
    is_answered(page)
    assert asked(page) == [text]
    expect(page.locator("#message textarea")).to_have_value("my own draft")
    expect(page.locator("#examples")).to_be_hidden()
    page.locator("#new-chat").click()
    expect(page.locator("#examples")).to_be_visible()
    expect(page.locator("#message textarea")).to_have_value("my own draft")


def test_the_last_question_is_edited_kept_and_asked_again(chat: Callable[..., Page]) -> None:
    page = chat()
    ask(page, "one")
    is_answered(page)
    ask(page, "two")
    is_answered(page, 2)
    box = page.locator("#message textarea")
    box.fill("a draft")
    page.locator("#pane-int4").get_by_role("button", name="Edit").click()
    expect(box).to_have_value("two")
    page.locator("#keep").click()
    expect(box).to_have_value("a draft")
    page.locator("#pane-int4").get_by_role("button", name="Edit").click()
    expect(box).to_have_value("two")
    ask(page, "three")
    expect(page.locator("#pane-int2 .message.user").last).to_contain_text("three")
    is_answered(page, 2)
    expect(box).to_have_value("a draft")
    assert [asked(page, name) for name in NAMES] == [["one", "three"]] * 3
    page.locator("#pane-fp16").get_by_role("button", name="Again").click()
    expect(page.locator("#send")).to_have_text("Send")
    is_answered(page, 2)
    assert asked(page) == ["one", "three"]


def test_again_takes_the_next_seed_where_answers_are_drawn(chat: Callable[..., Page]) -> None:
    page = chat()
    page.locator("#decoding > button").click()
    page.get_by_label("number input for Temperature").fill("1.5")
    page.keyboard.press("Tab")
    expect(page.locator("#decoding > button")).to_contain_text("temperature 1.5")
    ask(page, "hello")
    is_answered(page)
    page.locator("#pane-int2").get_by_role("button", name="Again").click()
    expect(page.get_by_label("Seed")).to_have_value("1")
    expect(page.locator("#decoding > button")).to_contain_text("seed 1")
    is_answered(page)


def test_answers_and_code_are_copied(chat: Callable[..., Page]) -> None:
    page = chat()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "hello")
    is_answered(page)
    copy = page.locator("#pane-int2 .answer > footer [data-action=copy]")
    copy.click()
    expect(copy).to_have_text("Copied")
    text = copy.get_attribute("data-text")
    assert page.evaluate("navigator.clipboard.readText()") == text


def test_words_show_where_the_answers_part_and_text_follows_the_newest_again(
    chat: Callable[..., Page], photos: Path
) -> None:
    page = chat()
    for turn in range(4):
        ask(page, f"hello {turn} " + "and more of it " * 10)
        is_answered(page, turn + 1)
    page.get_by_label("Words").check()
    agreement = page.locator("#pane-int2 .agreement").last
    expect(agreement).to_contain_text("FP16")
    page.screenshot(path=photos / "chat-words.png", full_page=True)
    for label in ("One below the other", "Side by side"):
        page.locator("#pane-int2 [data-action=sides]").last.click()
        expect(agreement.get_by_text(label)).to_be_visible()
    page.get_by_label("Text").check()
    expect(page.locator("#pane-int2 .agreement")).to_have_count(0)
    ask(page, "the newest")
    is_answered(page, 5)
    for name in NAMES:
        pane = page.locator(f"#pane-{name}")
        expect(pane.locator(".answer > footer").last).to_be_in_viewport()
        left = pane.evaluate("pane => pane.scrollHeight - pane.scrollTop - pane.clientHeight")
        assert left < 40


def test_a_phone_shows_one_column_and_the_newest_answer_after_send(
    chat: Callable[..., Page], photos: Path
) -> None:
    page = chat(size=PHONE)
    ask(page, "hello")
    expect(page.locator("#pane-fp16 .answer > footer")).to_be_in_viewport(timeout=RUN_MS)
    expect(page.locator("#column-int2")).to_be_hidden()
    assert height(page.locator("#head-fp16")) < ONE_LINE_PX
    page.screenshot(path=photos / "chat-phone.png")
    page.get_by_role("button", name="INT2", exact=True).click()
    expect(page.locator("#column-fp16")).to_be_hidden()
    expect(page.locator("#pane-int2 .answer > footer")).to_be_in_viewport(timeout=RUN_MS)
    assert height(page.locator("#head-int2")) < ONE_LINE_PX
    pressed = page.get_by_role("button", name="INT2", exact=True)
    expect(pressed).to_have_attribute("aria-pressed", "true")
    assert not scrolls_sideways(page)


def test_a_screen_reader_is_told_names_and_finished_answers(chat: Callable[..., Page]) -> None:
    page = chat()
    box = page.get_by_role("textbox", name="Message to all columns")
    expect(box).to_have_css("unicode-bidi", "plaintext")
    region = page.locator("#announced [aria-live=polite]")
    expect(region).to_have_attribute("role", "status")
    page.evaluate(HEARD)
    ask(page, "שלום")
    is_answered(page)
    expect(region).to_contain_text("has answered:")
    page.wait_for_function("heard.filter((words) => words.includes(' answered')).length === 3")
    first, *others = page.evaluate("heard")
    heard = others if first.startswith("Loading ") else [first, *others]
    assert sorted(words.split()[0] for words in heard) == ["FP16", "INT2", "INT4"], "each once"
    assert page.locator("#columns [role=status]").count() == 0, "the columns say nothing themselves"
    expect(page.locator("#pane-int4 .message.user .text")).to_have_attribute("dir", "auto")


def test_a_system_prompt_that_is_set_is_told_while_it_is_folded(chat: Callable[..., Page]) -> None:
    page = chat()
    chip = page.locator("#system-prompt > button")
    expect(chip).to_contain_text("the model's own")
    chip.click()
    page.get_by_label("System prompt").fill("You are a pirate.")
    page.keyboard.press("Tab")
    chip.click()
    expect(chip).to_contain_text("✓ System prompt: You are a pirate.")


def test_the_stop_of_a_column_shows_only_while_it_answers(chat: Callable[..., Page]) -> None:
    page = chat()
    expect(page.locator("#stop-int2")).to_be_hidden()
    ask(page, "hello")
    is_answered(page)
    expect(page.locator("#stop-int2")).to_be_hidden()
    expect(page.get_by_text("Stop all")).to_have_count(0)
