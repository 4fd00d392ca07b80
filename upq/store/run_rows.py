"""All rows of one run, apart from the numbers that a database gave them, so that another database can take them in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from upq.store.connections import next_revision

Row = dict[str, Any]
#: What a run is. The rest says who worked on it here: worker, lease, attempts, and what was asked of it.
_OF_A_RUN = (
    "kind",
    "state",
    "name",
    "note",
    "model",
    "method",
    "preset",
    "config",
    "created_at",
    "started_at",
    "ended_at",
    "stage",
    "stage_step",
    "stage_total",
    "stages",
    "peak_bytes",
    "gpu_peak_bytes",
    "worked_s",
    "environments",
)
#: What people write on a run, and may change when it is done.
_WRITTEN_ON = ("name", "note")
#: What a run reported: table -> its rows in order.
_REPORTS = {
    "metrics": "SELECT * FROM metrics WHERE run_id = ? ORDER BY series, step",
    "log": "SELECT * FROM log WHERE run_id = ? ORDER BY id",
    "measurements": "SELECT * FROM measurements WHERE run_id = ? ORDER BY rowid",
    "check_results": "SELECT * FROM check_results WHERE run_id = ? ORDER BY precision, position",
}
#: What an artifact holds: table -> its names in order.
_CONTENTS = {
    "artifact_tensors": "SELECT * FROM artifact_tensors WHERE artifact_id = ? ORDER BY rowid",
    "artifact_files": "SELECT * FROM artifact_files WHERE artifact_id = ? ORDER BY rowid",
}
_BLOBS = (
    "SELECT digest, size_bytes FROM blobs WHERE digest IN"
    " (SELECT blob_digest FROM artifact_tensors WHERE artifact_id = ?"
    " UNION SELECT blob_digest FROM artifact_files WHERE artifact_id = ?) ORDER BY digest"
)
#: Columns that hold a number of this database.
_NUMBERS = {"id", "run_id", "artifact_id"}


@dataclass(frozen=True)
class RunRows:
    """One run. reports: table -> rows. artifacts: (artifact, table -> rows). blobs: digest -> bytes of all contents."""

    run: Row
    reports: dict[str, list[Row]]
    artifacts: list[tuple[Row, dict[str, list[Row]]]]
    blobs: dict[str, int]

    @property
    def digest(self) -> str:
        """A digest of what was done and what came of it, log and labels aside; the same in every database."""
        reports = {table: rows for table, rows in self.reports.items() if table != "log"}
        run = {name: value for name, value in self.run.items() if name not in _WRITTEN_ON}
        content = [{**run, "config": _config(self.run, None)}, reports, self.artifacts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def precisions(self) -> list[str]:
        """Those of its artifacts."""
        return [artifact["precision"] for artifact, _ in self.artifacts]


def read_run(db: Database, run_id: int) -> RunRows:
    """The rows of a run that is there."""
    (run,) = db.query("SELECT * FROM runs WHERE id = ?", [run_id])
    artifacts = []
    blobs: dict[str, int] = {}
    for artifact in list(
        db.query("SELECT * FROM artifacts WHERE run_id = ? ORDER BY id", [run_id])
    ):
        number = artifact["id"]
        artifacts.append((_numberless(artifact), _by_table(db, _CONTENTS, number)))
        sizes = db.query(_BLOBS, [number, number])
        blobs |= {row["digest"]: row["size_bytes"] for row in sizes}
    kept = {name: run[name] for name in _OF_A_RUN}
    return RunRows(kept, _by_table(db, _REPORTS, run_id), artifacts, blobs)


def check_ids(db: Database, run_id: int) -> list[int]:
    """The finished checks of a run, oldest first."""
    sql = "SELECT id FROM runs WHERE parent_id = ? AND state = 'done' ORDER BY id"
    return [row["id"] for row in db.query(sql, [run_id])]


def same_run(db: Database, rows: RunRows, parent_id: int | None) -> int | None:
    """The number under which a run is here already, if it is."""
    sql = "SELECT id FROM runs WHERE kind = ? AND created_at = ? AND parent_id IS ? AND state = 'done'"
    found = list(db.query(sql, [rows.run["kind"], rows.run["created_at"], parent_id]))
    digest = rows.digest
    return next((row["id"] for row in found if read_run(db, row["id"]).digest == digest), None)


def insert_run(db: Database, rows: RunRows, parent_id: int | None) -> int:
    """Insert a run whose blobs are here, inside the caller's transaction; its new number.

    No worker of this database ever held it, so its attempt stays 0.
    """
    run = {**rows.run, "parent_id": parent_id, "revision": next_revision(db)}
    run_id = _insert(db, "runs", {**run, "config": _config(rows.run, parent_id)})
    for table, reports in rows.reports.items():
        for report in reports:
            _insert(db, table, {"run_id": run_id, **report})
    for artifact, contents in rows.artifacts:
        artifact_id = _insert(db, "artifacts", {"run_id": run_id, **artifact})
        for table, entries in contents.items():
            for entry in entries:
                _insert(db, table, {"artifact_id": artifact_id, **entry})
    return run_id


def insert_blobs(
    db: Database,
    blobs: Mapping[str, int],
    parts: Callable[[str], Iterable[tuple[str, bytes]]],
) -> None:
    """Insert the blobs that are not here, inside the caller's transaction.

    blobs: digest -> bytes. parts: the (sha256, bytes) of a blob's parts, in order.
    """
    for digest, size in blobs.items():
        cursor = db.execute(
            "INSERT INTO blobs VALUES (?, ?) ON CONFLICT DO NOTHING", [digest, size]
        )
        if cursor.rowcount:
            for position, (sha256, data) in enumerate(parts(digest)):
                db.execute(
                    "INSERT INTO parts VALUES (?, ?, ?, ?)", [digest, position, sha256, data]
                )


def _config(run: Row, parent_id: int | None) -> str:
    """The config of a run; a check names the run that it looks at."""
    if run["kind"] != "check":
        return run["config"]
    return json.dumps({**json.loads(run["config"]), "run_id": parent_id})


def _by_table(db: Database, queries: Mapping[str, str], number: int) -> dict[str, list[Row]]:
    return {
        table: list(map(_numberless, db.query(sql, [number]))) for table, sql in queries.items()
    }


def _numberless(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _NUMBERS}


def _insert(db: Database, table: str, row: Row) -> int:
    marks = ", ".join("?" * len(row))
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"  # noqa: S608  names of our own tables
    return int(db.execute(sql, list(row.values())).lastrowid or 0)
