"""Times that the page counts on by itself read as the server writes them."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from ui.html.clock import TICKING
from upq.units import duration

pytestmark = pytest.mark.browser

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def test_the_page_writes_durations_as_the_server_does(browser: Browser) -> None:
    seconds = [10, 59, MINUTE_S, 61, 599, 600, HOUR_S - 1, HOUR_S, HOUR_S + 90, 47 * HOUR_S]
    seconds += [2 * DAY_S, 3 * DAY_S, 729 * DAY_S, 730 * DAY_S, 1401 * DAY_S]
    page = browser.new_page()
    words, _, _ = TICKING.partition("setInterval")
    shown = page.evaluate(f"(seconds) => {{ {words} return seconds.map(words); }}", seconds)
    assert shown == [duration(each) for each in seconds]
    page.close()


def test_a_time_that_is_drawn_again_in_the_same_place_counts_from_what_it_says(
    browser: Browser,
) -> None:
    page = browser.new_page()
    page.set_content('<span data-clock="up" data-seconds="60.0">1 min</span>')
    page.evaluate(f"() => {{ {TICKING} }}")
    clock = page.locator("span")
    expect(clock).to_have_text("1 min 3 s", timeout=6000)
    clock.evaluate("clock => { clock.dataset.seconds = '63.0'; clock.textContent = '1 min 3 s'; }")
    page.wait_for_timeout(2600)
    assert clock.inner_text() in ("1 min 4 s", "1 min 5 s"), "not 1 min 7 s"
    page.close()
