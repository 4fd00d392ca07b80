"""The blind vote in Chromium: by keys and by mouse, in two windows, after a reload, and on a phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.pages import LOADED_MS, RUN_MS, go, scrolls_sideways
from tests.ui.studio import Studio, start_app, stop_app
from tests.unit.jobs.test_served import stored_run
from upq.models import load
from upq.store import open_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]

READY = "#blind-stage button[data-key='1']"


@pytest.fixture(scope="module")
def voting(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Studio]:
    """An app with a finished run of a tiny model, rounded to nearest."""
    folder = tmp_path_factory.mktemp("voting")
    store = open_store(folder)
    stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    store.close()
    url, process = start_app(folder)
    yield Studio(url, folder, tiny_model_dir, process)
    stop_app(process)


@pytest.fixture
def visit(open_page: Callable[..., Page], voting: Studio) -> Callable[..., Page]:
    """Open a page of that app."""
    return partial(open_page, url=voting.url)


def open_blind(page: Page) -> None:
    """Open the view on the finished run."""
    expect(page.locator("#run-selector input")).to_have_value(re.compile("#1"), timeout=LOADED_MS)
    go(page, "Chat")
    page.locator("#view").get_by_label("Blind").check()
    expect(page.locator("#columns")).to_be_hidden()
    expect(page.locator("#message")).to_be_hidden()
    expect(page.locator("#blind-stage .blind-answers")).to_be_visible(timeout=RUN_MS)


def next_pair(page: Page) -> None:
    """Go on until there is a pair to vote on."""
    while not page.locator(READY).count():
        page.locator("#blind-stage button[data-action=next]").click()
        expect(page.locator("#blind-reveal")).to_have_count(0)
        expect(page.locator("#blind-stage .blind-answers")).to_be_visible(timeout=RUN_MS)


def test_a_person_votes_by_keys_and_learns_whose_answers_they_were(
    visit: Callable[..., Page], photos: Path
) -> None:
    page = visit()
    open_blind(page)
    next_pair(page)
    stage = page.locator("#blind-stage")
    expect(stage).not_to_contain_text(re.compile("FP16|INT4|INT2|tok/s|MB"))
    page.screenshot(path=photos / "blind-ready.png", full_page=True)
    box = page.locator("#blind-message textarea")
    box.fill("")
    box.press("1")
    expect(box).to_have_value("1")
    expect(page.locator(READY)).to_be_enabled()
    box.fill("")
    page.locator("#view").get_by_label("Blind").focus()
    page.keyboard.press("2")
    expect(page.locator("#blind-reveal")).to_contain_text("A was")
    expect(page.locator("#blind-reveal")).to_contain_text("better.")
    expect(page.locator("#blind-stage button[data-action=next]")).to_be_focused()
    expect(page.locator("#blind-tallies")).to_contain_text("too few")
    page.screenshot(path=photos / "blind-voted.png", full_page=True)
    done = page.locator(".blind-head .place").inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#blind-reveal")).to_have_count(0)
    expect(page.locator(".blind-head .place")).to_have_text(done)

    go(page, "Results")
    expect(page.locator("#votes-table")).to_contain_text("too few")
    with page.expect_download() as download:
        page.locator("#votes-csv").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8")
    assert lines.startswith("run_id,deck_id,shown_a,shown_b,choice,better,at,draw_seed,prompt")


def test_a_showing_counts_once_in_two_windows_and_the_deck_goes_on_after_a_reload(
    visit: Callable[..., Page], voting: Studio
) -> None:
    one, other = visit(), visit()
    open_blind(one)
    next_pair(one)
    open_blind(other)
    question = one.locator("#blind-stage .message.user").inner_text()
    expect(other.locator("#blind-stage .message.user")).to_have_text(question)
    one.locator(READY).dblclick()
    expect(one.locator("#blind-reveal")).to_be_visible()
    other.locator("#blind-stage button[data-key='4']").click()
    expect(other.locator("#blind-reveal")).to_contain_text("another window already")
    store = open_store(voting.folder)
    votes = [vote for vote in store.votes.of() if vote.prompt == question]
    store.close()
    assert [vote.choice for vote in votes] == ["A"]
    one.reload()
    expect(one.locator("#status .status-line")).to_be_visible(timeout=LOADED_MS)
    open_blind(one)
    expect(one.locator("#blind-stage .message.user")).not_to_have_text(question)


def test_a_question_of_ones_own_is_answered_by_two_and_fits_on_a_phone(
    visit: Callable[..., Page], photos: Path
) -> None:
    for theme in ("light", "dark"):
        page = visit({"width": 390, "height": 844}, theme)
        open_blind(page)
        page.locator("#blind-message textarea").fill("What is your name?")
        page.locator("#blind-ask").click()
        expect(page.locator("#blind-stage .message.user")).to_have_text("What is your name?")
        expect(page.locator("#blind-stage .blind-answers")).to_be_visible(timeout=RUN_MS)
        expect(page.locator(".blind-head")).to_contain_text("Your own question")
        page.screenshot(path=photos / f"blind-390-{theme}.png", full_page=True)
        assert not scrolls_sideways(page)
        page.locator("#view").get_by_label("Text").check()
        expect(page.locator("#blind")).to_be_hidden()
        expect(page.locator("#message")).to_be_visible()
