"""An app without models, worker and exports, for what asks its store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ui.app_state import App
from upq.store import Store


def app_of(store: Store, folder: Path = Path()) -> App:
    """The app of a store; nothing answers, trains or exports."""
    nobody: Any = None
    return App(store, nobody, nobody, folder, nobody)
