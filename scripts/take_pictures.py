"""Take the pictures of README.md from the real app, with the models that ship with it.

python -m scripts.take_pictures [--out docs/images]

Starts the app on a folder of its own, waits until the models are unpacked, asks a question, and looks at each tab.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from bench.studio import CHROMIUM, running
from upq.machine import ROOT

SIZE: ViewportSize = {"width": 1280, "height": 860}
QUESTION = "Explain in two sentences why the sky is blue."
UNPACKED_MS, ANSWERED_MS, TIMED_MS, DRAWN_MS = 300_000, 180_000, 120_000, 60_000
#: Time for what is drawn by degrees, milliseconds.
SETTLED_MS = 2_500


def take(page: Page, out: Path) -> None:
    """Look at the chat and its views, then at the other tabs."""

    def picture(name: str) -> None:
        page.wait_for_timeout(SETTLED_MS)
        page.evaluate("window.scrollTo(0, 0)")
        page.screenshot(path=out / f"{name}.png")

    expect(page.locator("#run-selector input")).not_to_have_value("", timeout=UNPACKED_MS)
    expect(page.locator("#head-int2")).to_contain_text("bit", timeout=UNPACKED_MS)
    page.locator("#message textarea").fill(QUESTION)
    page.locator("#send").click()
    for name in ("fp16", "int4", "int2"):
        expect(page.locator(f"#column-{name} .message.answer footer").last).to_contain_text(
            "token", timeout=ANSWERED_MS
        )
    for name in ("int4", "int2"):
        expect(page.locator(f"#head-{name} .line")).to_contain_text("x FP16", timeout=TIMED_MS)
    picture("chat")
    page.locator("#view label", has_text="Token KL").click()
    expect(page.locator(".token-view .tokens")).to_be_visible(timeout=DRAWN_MS)
    page.locator(".token-view .token").nth(6).click()
    picture("token-kl")
    page.locator("#view label", has_text="Blind").click()
    expect(page.locator(".blind-answer").first).to_be_visible(timeout=ANSWERED_MS)
    picture("blind")
    for tab in ("Quantize", "Checks", "Results"):
        page.get_by_role("tab", name=tab).click()
        picture(tab.lower())


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="upq-pictures-") as folder,
        running(Path(folder)) as studio,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{studio.url}?__theme=light")
        take(page, options.out)
        browser.close()


if __name__ == "__main__":
    main()
