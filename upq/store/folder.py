"""The data folder: where the database, the checkpoints of runs and the exports lie."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from upq.errors import UserError
from upq.store.database import Store

DATABASE_NAME = "upq.db"


def data_dir(explicit: str | None = None) -> Path:
    """The data folder: `explicit`, else UPQ_HOME, else the platform's place for user data.

    It is created. Raises UserError("not_writable").
    """
    chosen = explicit or os.environ.get("UPQ_HOME") or platformdirs.user_data_dir("upq-studio")
    path = Path(chosen).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(
            "not_writable",
            f"The data folder {path} cannot be created or written to.",
            "Choose another one with --data-dir or UPQ_HOME.",
        )
    return path


def database_path(folder: Path) -> Path:
    """The database of a data folder."""
    return folder / DATABASE_NAME


def open_store(folder: Path) -> Store:
    """The store of a data folder."""
    return Store(database_path(folder))


def exports_dir(folder: Path) -> Path:
    """Where the app keeps models that it made for other programs."""
    return folder / "exports"


def checkpoint_dir(folder: Path, run_id: int) -> Path:
    """Where a run keeps its resumable state."""
    return folder / "checkpoints" / f"run-{run_id}"
