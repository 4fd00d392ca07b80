"""A finished run written as a file of its own, to be taken to another machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from upq.errors import UserError
from upq.files import commit_file
from upq.store import packed_file
from upq.store.artifacts import DamagedBlob, read_parts
from upq.store.connections import Connections
from upq.store.run import find_run
from upq.store.run_rows import RunRows, check_ids, insert_blobs, insert_run, read_run


@dataclass(frozen=True)
class Moved:
    """What a packed file holds. run_id: its run's number here. checks: how many of the run went along.

    is_new: False where the run was here before.
    """

    run_id: int
    precisions: list[str]
    checks: int
    is_new: bool = True


def pack(connections: Connections, run_id: int, path: Path) -> Moved:
    """Write a run with all that it left, its checks among it, as a new file, which is there whole or not at all.

    Raises UserError: run_not_found, run_not_done, artifact_damaged, cannot_write.
    """
    with connections.snapshot() as db:
        _require_done(db, run_id)
        runs = [read_run(db, run_id), *(read_run(db, one) for one in check_ids(db, run_id))]
    if path.exists():
        raise UserError(
            "cannot_write", f"{path} exists already.", "Choose another name, or remove it."
        )
    try:
        commit_file(path, lambda staging: _fill(staging, runs, connections))
    except (OSError, sqlite3.DatabaseError) as error:
        raise UserError(
            "cannot_write",
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}.",
            "Free some space, or choose another folder.",
        ) from error
    return Moved(run_id, runs[0].precisions, len(runs) - 1)


def _require_done(db: Database, run_id: int) -> None:
    run = find_run(db, run_id)
    if run.kind == "check":
        looks_at = f", such as run {run.parent_id}" if run.parent_id else ""
        raise UserError(
            "run_not_done",
            f"Run {run_id} is a check; expected a run that made models{looks_at}.",
            "A run takes its finished checks along.",
        )
    if run.state != "done":
        raise UserError(
            "run_not_done",
            f"Run {run_id} is {run.state}; only a finished run can be packed.",
            "Wait for its end, or resume it.",
        )


def _fill(path: Path, runs: Sequence[RunRows], connections: Connections) -> None:
    with packed_file.created(path) as packed:
        parent_id = None
        for rows in runs:
            insert_blobs(packed, rows.blobs, lambda digest: _parts(connections, digest))
            run_id = insert_run(packed, rows, parent_id)
            parent_id = parent_id or run_id


def _parts(connections: Connections, digest: str) -> Iterator[tuple[str, bytes]]:
    """Each part is read by itself, so a large run keeps no writer waiting."""
    try:
        with connections.read() as db:
            yield from read_parts(db, digest)
    except DamagedBlob as damage:
        raise UserError(
            "artifact_damaged",
            f"An artifact of the run cannot be read: {damage}.",
            "Quantize again, or restore a backup of the data folder.",
        ) from damage
