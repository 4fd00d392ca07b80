"""Times that the page counts on by itself read as the server writes them."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

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
