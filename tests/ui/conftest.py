"""A really running app on a temporary data folder, shared by the API and browser tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.support.apps import whole_app
from tests.ui.lab import Lab
from tests.ui.open_app import DOWNLOADS, HANG_S, OpenApp, TinyModels
from tests.ui.pages import CHROMIUM, LOADED_MS, WIDE, go, note_stranger
from tests.ui.studio import Studio, free_port, start_app, stop_app
from tests.unit.jobs.test_served import stored_run
from ui import App, build, launch
from upq.jobs import Supervisor
from upq.jobs.export_folder import Exports
from upq.models import load
from upq.store import Store, exports_dir, open_store


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("lab")
    url, process = start_app(folder)
    yield Studio(url, folder, tiny_model_dir, process)
    if process.poll() is None:
        stop_app(process)


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[OpenApp]:
    """Serve the page from this process with a store of one finished run, and without a worker."""
    folder, scratch = tmp_path_factory.mktemp("open"), tmp_path_factory.mktemp("scratch")
    downloads = scratch / DOWNLOADS
    downloads.mkdir()
    with pytest.MonkeyPatch.context() as patch, closing(open_store(folder)) as store:
        patch.setattr(tempfile, "tempdir", str(scratch))
        patch.delenv("GRADIO_TEMP_DIR", raising=False)
        run_id = stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
        models = TinyModels(store, tiny_model_dir)
        exports = Exports(store, exports_dir(folder))
        page = build(App(store, models, Supervisor(store, folder), downloads, exports))
        url = launch(page, "127.0.0.1", free_port(), None, folder)
        with httpx.Client(base_url=url, timeout=HANG_S) as client:
            yield OpenApp(page, client, store, run_id, scratch)
        page.close(verbose=False)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """Make an app over an empty store, without a page."""
    with closing(Store(tmp_path / "upq.db")) as store:
        yield whole_app(store, tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A store, in the test's folder, for runs as a worker leaves them."""
    lab = Lab(tmp_path)
    yield lab
    lab.store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder for pictures; UPQ_PHOTOS names one that stays."""
    chosen = os.environ.get("UPQ_PHOTOS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("photos")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def strangers() -> list[str]:
    """Collect what the page did that it must not: requests to other hosts, script errors, dialogs."""
    return []


@pytest.fixture
def watched(browser: Browser, strangers: list[str]) -> Iterator[Callable[..., Page]]:
    """Open an address. Requests of the page to other hosts and errors of its scripts fail the test."""
    pages: list[Page] = []

    def at(address: str, size: ViewportSize = WIDE) -> Page:
        page = browser.new_page(viewport=size)
        pages.append(page)
        own = address.partition("?")[0]
        page.on("request", lambda request: note_stranger(request.url, own, strangers))
        page.on("pageerror", lambda error: strangers.append(f"script error: {error}"))
        page.goto(address)
        expect(page.locator("#status .status-line")).to_be_visible(timeout=LOADED_MS)
        return page

    yield at
    for page in pages:
        page.close()
    assert strangers == []


@pytest.fixture
def open_page(watched: Callable[..., Page], studio: Studio) -> Callable[..., Page]:
    """Open an app, the shared one unless another is named, and go to its form."""

    def open_at(size: ViewportSize = WIDE, theme: str = "light", url: str = studio.url) -> Page:
        page = watched(f"{url}?__theme={theme}", size)
        go(page, "Quantize")  # a page lands on Chat once there is a packed model
        return page

    return open_at
