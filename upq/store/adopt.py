"""A quantization that was executed elsewhere, inserted with all that it left, its checks among it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlite_utils import Database

from upq.store import artifacts as store_artifacts
from upq.store.artifacts import Prepared
from upq.store.connections import next_revision
from upq.store.lease import add_log, add_measurements
from upq.store.run_rows import RunRows, insert_run

#: What is kept of a check beside its outcomes. It left no curves and is done.
CHECK_FACTS = (
    "name",
    "model",
    "created_at",
    "started_at",
    "ended_at",
    "stage",
    "stage_step",
    "stage_total",
    "worked_s",
    "peak_bytes",
    "gpu_peak_bytes",
)
#: The same, of what a column holds as JSON.
CHECK_VALUES = ("config", "stages", "environments")


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

    run: columns, `measurements` as a run reports them, `metrics` as they are read, and `checks`, each with CHECK_FACTS,
    CHECK_VALUES and its `results`. line: the run's log. No worker of this database ever held them, so their attempt
    stays 0.
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
    for check in run.get("checks", ()):
        insert_run(db, _check_rows(check), run_id)
    return run_id


def _check_rows(check: Mapping[str, Any]) -> RunRows:
    """A check as rows; its results are dicts of precision, position and result."""
    row = {name: check[name] for name in CHECK_FACTS}
    row |= {name: json.dumps(check[name]) for name in CHECK_VALUES}
    row |= {"kind": "check", "state": "done", "method": "", "preset": ""}
    outcomes = [{**found, "result": json.dumps(found["result"])} for found in check["results"]]
    return RunRows(row, {"check_results": outcomes}, [], {})
