"""The app's page: header, four tabs and the named endpoints, in this order, wired to one App."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from ui import api, header, theme
from ui.app_state import App
from ui.chat import tab as chat_tab
from ui.checks import tab as checks_tab
from ui.gate import Gate, Page
from ui.quantize import tab as quantize_tab
from ui.results import tab

__all__ = ["App", "build", "launch"]

TITLE = "UPQ Studio"
#: Copies of downloads in Gradio's cache: looked for every hour, removed after a day. Seconds.
DELETE_CACHE = (3600, 86_400)
#: After so many events Gradio computes statistics of its queue, which nobody reads, from its last 10,000; by
#: itself it does so after each.
STATISTICS_EVERY = 10**12


def build(app: App) -> gr.Blocks:
    """Build the whole interface as gr.Blocks; `launch` serves it."""
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(STATISTICS_EVERY)
    with Page(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=DELETE_CACHE
    ) as demo:
        top = header.build(app)
        with gr.Tabs(selected="quantize", elem_id="tabs") as tabs:
            with gr.Tab("Quantize", id="quantize"):
                quantize_tab.build(app, top, tabs)
            with gr.Tab("Chat", id="chat"):
                chat_tab.build(app, top)
            with gr.Tab("Checks", id="checks"):
                checks_tab.build(app, top)
            with gr.Tab("Results", id="results"):
                tab.build(app, top)
        header.load(app, top, demo)
        api.build(app)
    demo.queue(default_concurrency_limit=8, max_size=64, api_open=False)
    return demo


def launch(
    page: gr.Blocks,
    host: str,
    port: int | None,
    auth: list[tuple[str, str]] | None,
    data_dir: Path,
) -> str:
    """Serve the page from a background thread and return its URL; page.close() ends it.

    Nothing is shared beyond `host`, no file of the data folder is ever served, and none is taken from outside.
    """
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        blocked_paths=[str(data_dir)],
        app_kwargs={"middleware": [Middleware(theme.SecurityHeaders), Middleware(Gate)]},
        theme=theme.theme(),
        head=theme.head(),
        prevent_thread_lock=True,
        show_error=False,  # UserErrors are shown all the same, what Python says is not
        share=False,
        run_history=False,
        footer_links=["api"],
        quiet=True,
    )
    return url
