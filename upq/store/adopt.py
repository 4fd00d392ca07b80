"""A quantization that was executed elsewhere, inserted with all that it left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlite_utils import Database

from upq.store import artifacts as store_artifacts
from upq.store.artifacts import Prepared
from upq.store.connections import next_revision
from upq.store.lease import add_log, add_measurements


def may_adopt(db: Database, note: str) -> bool:
    """Whether the note is absent and no quantization is done yet."""
    found = db.query(
        "SELECT 1 FROM notes WHERE key = ? UNION ALL"
        " SELECT 1 FROM runs WHERE kind = 'quantize' AND state = 'done' LIMIT 1",
        [note],
    )
    return not list(found)


def insert(
    db: Database, run: Mapping[str, Any], artifacts: Iterable[Prepared], line: str, now: float
) -> int:
    """Insert a done run inside the caller's transaction and return its id.

    run: columns, `measurements` as a run reports them and `metrics` as they are read. line: its log. No worker of this
    database ever held it, so its attempt stays 0.
    """
    cursor = db.execute(
        "INSERT INTO runs (kind, state, revision, name, model, method, preset, config, stages,"
        " environments, created_at, started_at, ended_at, worked_s, peak_bytes,"
        " gpu_peak_bytes)"
        " VALUES ('quantize', 'done', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            next_revision(db),
            run["name"],
            run["model"],
            run["method"],
            run["preset"],
            *(json.dumps(run[name]) for name in ("config", "stages", "environments")),
            run["created_at"],
            run["started_at"],
            run["ended_at"],
            run["worked_s"],
            run["peak_bytes"],
            run.get("gpu_peak_bytes"),
        ],
    )
    run_id = int(cursor.lastrowid or 0)
    for artifact in artifacts:
        store_artifacts.insert(db, run_id, artifact, run["ended_at"])
    add_measurements(db, run_id, run["measurements"])
    db.conn.executemany(
        "INSERT INTO metrics (run_id, series, step, value, at_s) VALUES (?, ?, ?, ?, ?)",
        [
            (run_id, point["series"], point["step"], point["value"], point["at_s"])
            for point in run["metrics"]
        ],
    )
    add_log(db, run_id, [(now, line)])
    return run_id
