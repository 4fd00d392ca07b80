"""How long somebody waits who opens the page, what that takes to load, and what open pages cost while nothing happens.

python -m bench.opening --json opening.json

Opens the app in headless Chromium as a new visitor each time, with the models that ship with it already unpacked, and
then leaves pages open. Times are seconds after the address was asked for: "painted" is the first paint with content,
"usable" when a question can be typed and sent, "filled" when each column says what its model is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ViewportSize, sync_playwright

from bench import report
from bench.studio import CHROMIUM, Studio, running

SIZE: ViewportSize = {"width": 1440, "height": 900}
VISITS = 5
#: Open pages, and how many of them are hidden behind another.
OPEN = ((0, 0), (1, 0), (5, 0), (5, 4))
#: Headless Chromium hides no page, so one is told that it is hidden.
HIDDEN = """Object.defineProperty(document, 'visibilityState', { get: () => 'hidden' });
Object.defineProperty(document, 'hidden', { get: () => true });"""
#: Unpacking what ships takes half a minute, on a busy machine a few; a page that is not there by then never comes.
UNPACKED_MS, OPENED_MS = 600_000, 60_000
SETTLED_S, LOOKED_S = 15.0, 30.0
#: The columns hold the models' sizes once they know their models.
FILLED = """() => ['fp16', 'int4', 'int2'].every(
  (name) => document.querySelector(`#head-${name}`)?.innerText.includes('MB'))"""
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime / 1000"
#: Of everything that was loaded, what came over the wire. A stream of events that goes on counts nothing.
LOADED = """() => performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
  .reduce((sum, entry) => sum + entry.transferSize, 0)"""


def main() -> None:
    """Measure, print two tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upq-opening-") as folder, sync_playwright() as played:
        browser = played.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        with running(Path(folder)) as studio:
            _wait_for_models(browser, studio.url)
            visits = [visit(browser, studio.url) for _ in range(VISITS)]
            polls = [polling(browser, studio, *pages) for pages in OPEN]
        browser.close()
    report.show(visits)
    report.show(polls)
    report.save(options.json, visits, polls=polls)


def visit(browser: Browser, url: str) -> dict[str, Any]:
    """One visit by somebody who was never here: its times, and what was loaded until the columns were filled."""
    context = browser.new_context(viewport=SIZE)
    page = context.new_page()
    started = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.locator("#send:enabled").wait_for(timeout=OPENED_MS)
    usable = time.perf_counter() - started
    page.wait_for_function(FILLED, timeout=OPENED_MS)
    filled = time.perf_counter() - started
    row = {"painted": page.evaluate(PAINTED), "usable": usable, "filled": filled}
    row["kB"] = page.evaluate(LOADED) / 1000
    context.close()
    return row


def polling(browser: Browser, studio: Studio, pages: int, hidden: int) -> dict[str, Any]:
    """What the app's process computes while some pages are open and nothing happens, in percent of a core."""
    contexts = [browser.new_context(viewport=SIZE) for _ in range(pages)]
    for number, context in enumerate(contexts):
        page = context.new_page()
        page.goto(studio.url)
        page.wait_for_function(FILLED, timeout=OPENED_MS)
        if number < hidden:
            page.evaluate(f"() => {{ {HIDDEN} }}")
    time.sleep(SETTLED_S)
    before = studio.cpu_s()
    time.sleep(LOOKED_S)
    used = studio.cpu_s() - before
    for context in contexts:
        context.close()
    return {
        "open pages": pages,
        "of them hidden": hidden,
        "percent of a core": 100 * used / LOOKED_S,
    }


def _wait_for_models(browser: Browser, url: str) -> None:
    """Wait until the models are unpacked; the app may still be timing them."""
    page = browser.new_page(viewport=SIZE)
    page.goto(url)
    page.wait_for_function(FILLED, timeout=UNPACKED_MS)
    time.sleep(SETTLED_S)
    page.close()


if __name__ == "__main__":
    main()
