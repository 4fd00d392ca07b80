"""An app for tests of handlers: with all that it needs to answer and export, or for what asks its store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ui.app_state import App
from upq.jobs import Models, Supervisor
from upq.jobs.export_folder import Exports
from upq.store import Store


def app_of(store: Store, folder: Path = Path()) -> App:
    """The app of a store; nothing answers, trains or exports."""
    nobody: Any = None
    return App(store, nobody, nobody, folder, nobody)


def whole_app(store: Store, folder: Path) -> App:
    """The app of a store with models and exports; its worker is not started."""
    return App(store, Models(store), Supervisor(store, folder), folder, Exports(store, folder))
