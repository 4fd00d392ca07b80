"""A packed run taken in, whole or not at all, and only once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlite_utils import Database

from upq.store.artifacts import DamagedBlob, read_parts
from upq.store.connections import Connections
from upq.store.lease import add_log
from upq.store.pack import Moved
from upq.store.packed_file import damaged, opened
from upq.store.run_rows import RunRows, insert_blobs, insert_run, read_run, same_run
from upq.store.vet_rows import vet_run


def unpack(connections: Connections, path: Path, clock: Callable[[], float]) -> Moved:
    """Insert the run of a packed file and its checks in one transaction; of a run that is here only its new checks.

    The answer's checks are those that were inserted. Every byte is read and compared with its digest before the write
    lock is taken. Raises UserError: not_a_pack, newer_database, pack_damaged, disk_full, and what SQLite reports of the
    database.
    """
    with opened(path, connections.path.parent) as packed:
        run, *checks = _vetted(packed, path)

        def parts(digest: str) -> Iterator[tuple[str, bytes]]:
            try:
                yield from read_parts(packed, digest)
            except (DamagedBlob, sqlite3.DatabaseError) as error:
                raise damaged(path, str(error)) from error

        for digest in run.blobs:
            for _ in parts(digest):
                pass
        with connections.write() as db:
            known = same_run(db, run, None)
            if known is None:
                insert_blobs(db, run.blobs, parts)
            run_id = known or insert_run(db, run, None)
            new = [check for check in checks if same_run(db, check, run_id) is None]
            for check in new:
                insert_run(db, check, run_id)
            if known is None or new:
                add_log(db, run_id, [(clock(), f"Unpacked from {path.name}.")])
    return Moved(run_id, run.precisions, len(new), is_new=known is None)


def _vetted(packed: Database, path: Path) -> list[RunRows]:
    """The run of a packed file, then its checks. Raises UserError("pack_damaged")."""
    try:
        kinds = packed.query("SELECT id, kind FROM runs ORDER BY kind DESC, id")
        found = {row["id"]: row["kind"] for row in kinds}
        if list(found.values()) != ["quantize", *["check"] * (len(found) - 1)]:
            raise ValueError("it does not hold one run with its checks")
        runs = [read_run(packed, run_id) for run_id in found]
        for run in runs:
            vet_run(run)
        if any(check.artifacts for check in runs[1:]):
            raise ValueError("a check of it has artifacts")
    except (ValueError, sqlite3.DatabaseError) as error:
        raise damaged(path, str(error)) from error
    return runs
