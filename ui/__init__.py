"""The app's page: header, five tabs and the named endpoints, in this order, wired to one App."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from ui import address, api, drafts, header, theme
from ui.app_state import PRIVATE, App
from ui.chat import draft as chat_draft
from ui.chat import tab as chat_tab
from ui.checks import tab as checks_tab
from ui.compress import CompressedPage
from ui.export import tab as export_tab
from ui.gate import Gate, Page
from ui.html import parts
from ui.quantize import tab as quantize_tab
from ui.results import tab
from upq.store import exports_dir

__all__ = ["App", "build", "launch"]

TITLE = "UPQ Studio"
#: Copies of downloads in Gradio's cache: looked for every hour, removed after a day. Seconds.
DELETE_CACHE = (3600, 86_400)
#: Events that wait for their turn; more are refused. A change of the catalog is up to five of them on every open page.
MAX_QUEUED = 1024
#: Open or closed pages whose states are kept in memory, the newest ones.
MOST_SESSIONS = 500
#: Seconds between two looks of Gradio's queue whether an event waits, and whether one has progress to tell, which none
#: has here. Its own thousand and hundred looks a second are seven percent of a core where nothing happens at all.
LOOK_S, NO_PROGRESS_S = 0.02, 5.0


def build(app: App) -> Page:
    """Build the whole interface; `launch` serves it."""
    with Page(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=DELETE_CACHE
    ) as demo:
        top = header.build(app, demo)
        if any(app.notice):
            gr.HTML(parts.notice("empty", *app.notice), elem_id="visitors")
        with gr.Tabs(selected=header.FIRST_TAB, elem_id="tabs") as tabs:
            with gr.Tab("Quantize", id="quantize"):
                run_draft = quantize_tab.build(app, top, tabs)
            with gr.Tab("Chat", id="chat"):
                history = chat_tab.build(app, top)
            with gr.Tab("Checks", id="checks"):
                check_draft = checks_tab.build(app, top)
            with gr.Tab("Results", id="results"):
                tab.build(app, top)
            with gr.Tab("Export", id="export") as export:
                export_tab.build(app, top, export)
        address.build(app, demo, tabs, top, history)
        drafts.build(demo, [run_draft, chat_draft.of_chat(history), check_draft])

        def land(request: gr.Request) -> Any:
            is_named = address.names_a_tab(request, tabs)
            tab = header.FIRST_TAB if is_named else landing(app)
            return (
                (gr.skip(), gr.skip()) if tab == header.FIRST_TAB else (gr.Tabs(selected=tab), tab)
            )

        demo.load(land, None, [tabs, top.tab], **PRIVATE)
        api.build(app)
    demo.guards = app.guards
    keep_to_endpoints(demo)
    without_analytics()
    demo.queue(default_concurrency_limit=8, max_size=MAX_QUEUED, api_open=False)
    demo._queue.sleep_when_free = LOOK_S
    demo._queue.progress_update_sleep_when_free = NO_PROGRESS_S
    return demo


def keep_to_endpoints(demo: Page) -> None:
    """List no event as an endpoint that is none: Gradio adds one for its button to sign in."""
    for event in demo.fns.values():
        if event.api_visibility == "public" and api.request_of(event.fn) is None:
            event.api_visibility = "private"


def landing(app: App) -> str:
    """The tab where a page that was just opened lands: Chat, or Quantize where there is no packed model and none is
    being unpacked.
    """
    has_models = app.unpack_state == "busy" or app.store.artifacts()
    return header.FIRST_TAB if has_models else "quantize"


def without_analytics() -> None:
    """Keep Gradio from making statistics of its events, which nobody reads: after each one it computes percentiles of
    the last ten thousand. Gradio reads these variables when it makes its queue.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")


def launch(
    page: Page,
    host: str,
    port: int | None,
    auth: list[tuple[str, str]] | None,
    data_dir: Path,
) -> str:
    """Serve the page from a background thread and return its URL; page.close() ends it.

    Nothing is shared beyond `host`, and no file is taken from outside. Of the data folder only exports are served:
    Gradio serves what lies in `allowed_paths` or was made for a download, and nothing else.
    """
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        allowed_paths=[str(exports_dir(data_dir))],
        app_kwargs={
            "middleware": [
                *(Middleware(CompressedPage), Middleware(theme.SecurityHeaders)),
                *page.guards,
                Middleware(Gate),
            ]
        },
        theme=theme.theme(),
        head=theme.head(),
        prevent_thread_lock=True,
        show_error=False,  # UserErrors are shown all the same, what Python says is not
        share=False,
        run_history=False,
        state_session_capacity=MOST_SESSIONS,
        footer_links=["api"],
        quiet=True,
        _frontend=False,  # else Gradio gives up where its own page takes three seconds, as on a busy machine
    )
    return url
