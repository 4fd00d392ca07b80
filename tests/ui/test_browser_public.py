"""Two people in two browsers on an app that is open to strangers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.strangers import Place, open_to_strangers
from tests.ui.pages import LOADED_MS

pytestmark = [pytest.mark.slow, pytest.mark.browser]
#: How often Start is pressed until the preset has reached the form, and how long each time is waited for its answer.
TRIES, TRY_MS = 6, 10_000


def opened(browser: Browser, place: Place) -> Page:
    page = browser.new_context(viewport={"width": 1024, "height": 900}).new_page()
    page.goto(place.url)
    expect(page.locator("#status .status-line")).to_be_visible(timeout=LOADED_MS)
    return page


def test_each_sees_their_own_runs_and_that_the_machine_is_busy_with_others(
    browser: Browser, tmp_path: Path, tiny_model_dir: Path
) -> None:
    with open_to_strangers(tmp_path, str(tiny_model_dir)) as place:
        ada, bob = opened(browser, place), opened(browser, place)
        expect(ada.locator("#visitors")).to_contain_text("Only you see your runs.")
        ada.locator("#method label", has_text="RTN").click()
        ada.locator("#preset label", has_text="smoke").click()
        for _ in range(TRIES):  # the preset is on its way into the form meanwhile
            ada.locator("#start").click()
            with suppress(AssertionError):
                expect(ada.locator("#started")).to_contain_text("#1 is queued", timeout=TRY_MS)
                break
        expect(ada.locator("#started")).to_contain_text("#1 is queued")
        expect(ada.locator("#history")).to_contain_text("#1", timeout=LOADED_MS)
        run = place.house.claim("cpu@here:1", 1, 600.0)
        assert run is not None
        assert run.owner.startswith("browser ")
        expect(ada.locator("#status")).to_contain_text("run #1", timeout=LOADED_MS)
        expect(bob.locator("#status")).to_contain_text(
            "busy with another visitor's run", timeout=LOADED_MS
        )
        expect(bob.locator("#history")).not_to_contain_text("#1")
        ada.locator("#start").click()
        expect(ada.locator("#started")).to_contain_text("a visitor has 1 at a time")
        expect(bob.locator("#preset label", has_text="overnight")).to_have_count(0)
        ada.reload()
        expect(ada.locator("#history")).to_contain_text("#1", timeout=LOADED_MS)
        place.house.lease(run).finish("done")
        for page in (ada, bob):
            page.context.close()
