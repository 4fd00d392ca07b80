"""What the Export tab and the endpoints ask alike: the formats that a model can leave in, and its files."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ui.app_state import App
from upq.errors import UserError
from upq.jobs import exports
from upq.jobs.export_folder import Kept, Wanted


def offers_of(app: App, run_id: int, precision: str) -> list[dict[str, Any]]:
    """A row for each format, as upq.jobs.exports.offers gives it. An artifact is opened once for all who ask.

    Raises UserError: run_not_found, artifact_not_found, artifact_version, artifact_damaged.
    """
    artifact = exports.require_artifact(app.store, run_id, precision)

    def opened() -> list[dict[str, Any]]:
        return exports.offers(exports.model_of(app.store, run_id, precision))

    return app.shared.get(_key(artifact), opened)


def is_known(app: App, run_id: int, precision: str) -> bool:
    """Whether `offers_of` answers at once; to open an artifact takes seconds. Raises UserError as it does."""
    return app.shared.has(_key(exports.require_artifact(app.store, run_id, precision)))


def _key(artifact: int) -> Hashable:
    return "exports", artifact


def made(app: App, wanted: Wanted) -> Kept:
    """The files, when they have been made. Raises UserError as Exports.make, and with what made them fail."""
    work = app.exports.make(wanted)
    if work:
        work.ended.wait()
        if work.failure:
            raise work.failure
    kept = app.exports.kept(wanted)
    if kept is None:
        raise UserError("export_stopped", f"{wanted.name} was stopped.", "Make it again.")
    return kept


def told(kept: Kept) -> dict[str, Any]:
    """An export as programs read it."""
    files = [
        {"name": file.relative_to(kept.folder).as_posix(), "size_bytes": file.stat().st_size}
        for file in kept.files
    ]
    return {
        "folder": str(kept.folder),
        "size_bytes": kept.size_bytes,
        "found": kept.found,
        "files": files,
        "uses": [vars(use) for use in kept.uses],
    }
