"""A page of HTML that needs nothing else: it opens from disk, prints well, has no script and may fetch nothing."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ui.html.markup import Html, tag

STYLE_SHEETS = ("theme.css", "report.css")
DOCTYPE = Html("<!DOCTYPE html>\n")
#: Whatever a page holds: nothing runs, and nothing is asked of any server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def standalone(title: str, *children: Html) -> str:
    """Return the whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", _style()),
    )
    body = tag("body", tag("main", *children, class_="prose"), class_="gradio-container")
    return DOCTYPE + tag("html", head, body, lang="en")


@cache
def _style() -> Html:
    """Return the page's own look and the app's, so that charts and tables look as they do there.

    It is dark where the reader's system is, but not on paper.
    """
    app, own = (
        (Path(__file__).parents[1] / name).read_text(encoding="utf-8") for name in STYLE_SHEETS
    )
    dark = re.search(r"^\.dark (\{.*?^\})", app, re.MULTILINE | re.DOTALL)
    assert dark, "theme.css has a dark palette"
    return Html(
        f"{app}\n@media screen and (prefers-color-scheme: dark) {{ :root {dark[1]} }}\n{own}"
    )
