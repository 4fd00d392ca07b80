"""The lab's one database: the queue of runs, what they report, and the artifacts they leave.

Every process has one Store. The app reads and enqueues; a worker claims a run and writes through
its Lease. Changes happen in short transactions that take the write lock first. All SQL of the
product is in this package.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from upq.artifact import Artifact
from upq.config import CheckConfig, RunConfig
from upq.errors import UserError
from upq.files import clean_text
from upq.store import adopt as store_adopt
from upq.store import artifacts as store_artifacts
from upq.store import pack as store_pack
from upq.store import unpack as store_unpack
from upq.store import votes as store_votes
from upq.store.artifacts import ArtifactRow, Prepared
from upq.store.connections import Connections, migrate, next_revision
from upq.store.lease import Lease, add_log
from upq.store.pack import Moved
from upq.store.run import (
    GONE,
    SILENT,
    Ending,
    Run,
    RunState,
    find_run,
    from_row,
    running_runs,
)

#: So many dead workers in a row fail a run.
MAX_CRASHES = 3
NAME_CHARACTERS = 200


class Store:
    """The database at `path`, created if absent. Safe to use from several threads."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open and migrate. Raises UserError: newer_database, database_damaged, not_writable."""
        self._connections = Connections(path)
        self._clock = clock
        migrate(self._connections)
        self.votes = store_votes.Votes(self._connections, clock)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._connections.close()

    # The queue, as the app sees it

    def enqueue(self, config: RunConfig, *, name: str = "") -> int:
        """Put a quantization run at the end of the queue and return its id."""
        values = dataclasses.asdict(config)
        labels = (name, config.model.source, config.method, config.preset)
        return self._enqueue("quantize", values, None, labels)

    def enqueue_check(self, config: CheckConfig, *, name: str = "") -> int:
        """Put a check run at the end of the queue. Raises UserError("run_not_found")."""
        if config.run_id is not None:
            self.run(config.run_id)
        labels = (name, config.model, "", "")
        return self._enqueue("check", config.to_values(), config.run_id, labels)

    def _enqueue(
        self, kind: str, config: dict[str, Any], parent_id: int | None, labels: tuple[str, ...]
    ) -> int:
        name, *others = map(clean_text, labels)
        with self._connections.write() as db:
            cursor = db.execute(
                "INSERT INTO runs (kind, config, parent_id, created_at, revision, name, model,"
                " method, preset) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    kind,
                    json.dumps(config),
                    parent_id,
                    self._clock(),
                    next_revision(db),
                    *(name[:NAME_CHARACTERS], *others),
                ],
            )
            return int(cursor.lastrowid or 0)

    def run(self, run_id: int) -> Run:
        """The run with this id. Raises UserError("run_not_found")."""
        with self._connections.read() as db:
            return find_run(db, run_id)

    def runs(self, limit: int = 100, kind: str | None = None) -> list[Run]:
        """The newest runs first."""
        with self._connections.read() as db:
            found = db.query(
                "SELECT * FROM runs WHERE kind = coalesce(?, kind) ORDER BY id DESC LIMIT ?",
                [kind, limit],
            )
            return [from_row(row) for row in found]

    def live_run(self) -> Run | None:
        """The run that a worker is on, if any."""
        with self._connections.read() as db:
            running = running_runs(db)
        return running[0] if running else None

    def queue_position(self, run_id: int) -> int:
        """1: the next to start; 0: not in the queue."""
        with self._connections.read() as db:
            (row,) = db.query(
                "SELECT count(*) AS place FROM runs WHERE state = 'queued' AND id <= ? AND EXISTS"
                " (SELECT 1 FROM runs WHERE state = 'queued' AND id = ?)",
                [run_id, run_id],
            )
            return row["place"]

    def latest_revision(self) -> int:
        """A number that grows with every change of any run; cheap to ask for."""
        with self._connections.read() as db:
            (row,) = db.query("SELECT value FROM revision")
            return row["value"]

    def request_cancel(self, run_id: int) -> str:
        """Cancel a waiting run now, or ask a running one to stop. Returns a sentence to show."""
        with self._connections.write() as db:
            run = find_run(db, run_id)
            if run.state in ("queued", "interrupted"):
                self._end(db, run_id, "cancelled")
                return f"Run {run_id} is cancelled; it was not running."
            if run.state != "running":
                return f"Run {run_id} is already {run.state}; there is nothing to cancel."
            if run.cancel_requested:
                return f"Run {run_id} is already stopping."
            db.execute(
                "UPDATE runs SET cancel_requested = 1, revision = ? WHERE id = ?",
                [next_revision(db), run_id],
            )
            return f"Run {run_id} stops at its next safe point and can be resumed."

    def resume(self, run_id: int) -> str:
        """Queue a failed, cancelled or interrupted run again. Returns a sentence to show."""
        with self._connections.write() as db:
            run = find_run(db, run_id)
            if run.state not in ("failed", "cancelled", "interrupted"):
                return f"Run {run_id} is {run.state}; there is nothing to resume."
            db.execute(
                "UPDATE runs SET state = 'queued', crashes = 0, cancel_requested = 0,"
                " ended_at = NULL, error_code = '', error_message = '', error_hint = '',"
                " revision = ? WHERE id = ?",
                [next_revision(db), run_id],
            )
            add_log(db, run_id, [(self._clock(), "Resumed by hand.")])
            return f"Run {run_id} is queued again and goes on from its last checkpoint."

    def delete(self, run_id: int) -> None:
        """Remove an ended run, its checks, and all that they stored, except what others share.

        Raises UserError: run_not_found, run_is_running (also for a queued run or check).
        """
        with self._connections.write() as db:
            run = find_run(db, run_id)
            live = list(
                db.query(
                    "SELECT id, state FROM runs WHERE (id = ? OR parent_id = ?)"
                    " AND state IN ('queued', 'running')",
                    [run_id, run_id],
                )
            )
            if live:
                raise UserError(
                    "run_is_running",
                    f"Run {live[0]['id']} is {live[0]['state']}, so run {run_id} cannot be deleted.",
                    "Cancel it first.",
                )
            db.execute("DELETE FROM runs WHERE id = ?", [run.id])
            store_artifacts.remove_unused_blobs(db)
            next_revision(db)

    # A run from elsewhere

    def may_adopt(self, note: str) -> bool:
        """Whether `adopt` would insert a run now."""
        with self._connections.read() as db:
            return store_adopt.may_adopt(db, note)

    def adopt(
        self, run: Mapping[str, Any], artifacts: Iterable[Prepared], line: str, note: str
    ) -> int | None:
        """Insert a done run that was executed elsewhere, in one transaction, and return its id.

        run: columns, `measurements` and `metrics`; line: its log. Once for each `note`, and only while no quantization
        is done: else nothing is written, and the answer is None.
        """
        with self._connections.write() as db:
            if not store_adopt.may_adopt(db, note):
                return None
            set_note(db, note, True)
            return store_adopt.insert(db, run, artifacts, line, self._clock())

    def pack(self, run_id: int, path: Path) -> Moved:
        """Write a finished run as a file of its own. Raises UserError as upq.store.pack says."""
        return store_pack.pack(self._connections, run_id, path)

    def unpack(self, path: Path) -> Moved:
        """Take in the run of such a file, once. Raises UserError as upq.store.unpack says."""
        return store_unpack.unpack(self._connections, path, self._clock)

    # The queue, as workers and their supervisor see it

    def claim(self, worker: str, pid: int, lease_s: float) -> Run | None:
        """Take the oldest queued run for `lease_s` seconds; None if the queue is empty."""
        with self._connections.read() as db:
            if not list(db.query("SELECT 1 FROM runs WHERE state = 'queued' LIMIT 1")):
                return None  # the usual answer, without the write lock
        with self._connections.write() as db:
            now = self._clock()
            found = list(
                db.query(
                    "UPDATE runs SET state = 'running', worker = ?, pid = ?, lease_s = ?,"
                    " lease_until = ?, started_at = coalesce(started_at, ?), ended_at = NULL,"
                    " attempt = attempt + 1, error_code = '', error_message = '', error_hint = '',"
                    " revision = ? WHERE id ="
                    " (SELECT id FROM runs WHERE state = 'queued' ORDER BY id LIMIT 1) RETURNING *",
                    [worker, pid, lease_s, now + lease_s, now, next_revision(db)],
                )
            )
        return from_row(found[0]) if found else None

    def lease(self, run: Run) -> Lease:
        """The hold on a run that `claim` returned."""
        assert run.worker is not None, "a run has a worker once it is claimed"
        return Lease(self._connections, self._clock, run.id, run.worker, run.attempt)

    def reconcile(
        self,
        alive: Callable[[str, int], bool] | None = None,
        endings: Mapping[str, Ending] | None = None,
    ) -> list[int]:
        """End the running runs whose lease is over or whose worker is not `alive(worker, pid)`.

        endings: worker -> how it was lost, where that is known. Returns the ids of the runs: now
        cancelled if that was asked for, failed at the third crash, otherwise interrupted.
        """

        def loss(run: Run) -> Ending | None:
            if alive is not None and not alive(run.worker or "", run.pid or 0):
                unseen = GONE
            elif (run.lease_until or 0) < self._clock():
                unseen = SILENT
            else:
                return None
            return (endings or {}).get(run.worker or "", unseen)

        with self._connections.read() as db:
            if not any(map(loss, running_runs(db))):
                return []
        with self._connections.write() as db:
            lost = [(run, ending) for run in running_runs(db) if (ending := loss(run))]
            for run, ending in lost:
                self._give_up(db, run, ending)
        return [run.id for run, _ in lost]

    def has_left(self, worker: str, revision: int) -> bool:
        """Whether a worker has ended the run that it took after the database had this revision."""
        with self._connections.read() as db:
            sql = "SELECT 1 FROM runs WHERE worker = ? AND revision > ? AND state != 'running'"
            return bool(list(db.query(sql, [worker, revision])))

    def _give_up(self, db: Database, run: Run, ending: Ending) -> None:
        if run.cancel_requested:
            self._end(db, run.id, "cancelled")
            add_log(db, run.id, [(self._clock(), f"Cancelled: {ending.note}.")])
            return
        crashes = run.crashes + 1
        db.execute("UPDATE runs SET crashes = ? WHERE id = ?", [crashes, run.id])
        stage = run.stage or "start"
        reason = f"Crash {crashes} of {MAX_CRASHES} in stage {stage}: {ending.note}."
        add_log(db, run.id, [(self._clock(), reason)])
        state = "failed" if crashes >= MAX_CRASHES else "interrupted"
        self._end(db, run.id, state, ("worker_crashed", reason, ending.hint))

    def _end(
        self, db: Database, run_id: int, state: RunState, error: tuple[str, str, str] = ("", "", "")
    ) -> None:
        db.execute(
            "UPDATE runs SET state = ?, ended_at = ?, lease_until = NULL, pid = NULL,"
            " eta_s = NULL, tokens_per_s = NULL, error_code = ?, error_message = ?,"
            " error_hint = ?, revision = ? WHERE id = ?",
            [state, self._clock(), *error, next_revision(db), run_id],
        )

    def requeue_interrupted(self) -> list[int]:
        """Queue the interrupted runs again; their place is by age. Returns their ids."""
        with self._connections.read() as db:
            if not list(db.query("SELECT 1 FROM runs WHERE state = 'interrupted' LIMIT 1")):
                return []
        with self._connections.write() as db:
            found = db.query(
                "UPDATE runs SET state = 'queued', ended_at = NULL, revision = ?"
                " WHERE state = 'interrupted' RETURNING id",
                [next_revision(db)],
            )
            return sorted(row["id"] for row in found)

    # What runs reported, read back

    def metrics(self, run_id: int) -> list[dict[str, Any]]:
        """The points of all curves: dicts of series, step, value, at_s.

        at_s: seconds that the run had been worked on when the point was taken, pauses not counted.
        """
        sql = "SELECT series, step, value, at_s FROM metrics WHERE run_id = ? ORDER BY series, step"
        return self._list(sql, [run_id])

    def log_lines(self, run_id: int, limit: int = 200) -> list[tuple[float, str]]:
        """The last lines of the log, oldest first: (unix seconds, line)."""
        sql = "SELECT at, line FROM log WHERE run_id = ? ORDER BY id DESC LIMIT ?"
        return [(row["at"], row["line"]) for row in reversed(self._list(sql, [run_id, limit]))]

    def measurements(self, run_id: int | None = None) -> list[dict[str, Any]]:
        """Fidelity rows of a run, or of all runs."""
        sql = "SELECT * FROM measurements WHERE run_id = coalesce(?, run_id) ORDER BY rowid"
        return [{**row, "extra": json.loads(row["extra"])} for row in self._list(sql, [run_id])]

    def artifacts(self, run_id: int | None = None) -> list[ArtifactRow]:
        """The artifacts of a run, or of all runs, without their tensors."""
        with self._connections.read() as db:
            return store_artifacts.rows(db, run_id)

    def load_artifact(self, run_id: int, precision: str) -> Artifact:
        """Read an artifact, every byte checked.

        Raises UserError: artifact_not_found, artifact_damaged.
        """
        return store_artifacts.load(self._connections, run_id, precision)

    def check_results(self, run_id: int) -> list[dict[str, Any]]:
        """Dicts of precision, position, result, of a check run."""
        sql = (
            "SELECT precision, position, result FROM check_results WHERE run_id = ?"
            " ORDER BY precision, position"
        )
        return [{**row, "result": json.loads(row["result"])} for row in self._list(sql, [run_id])]

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        """Teacher answers under `key`: prompt digest -> token ids."""
        rows = self._list("SELECT prompt, tokens FROM answers WHERE key = ?", [key])
        return {row["prompt"]: json.loads(row["tokens"]) for row in rows}

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        """Store teacher answers under `key`; existing ones are kept."""
        rows = [(key, prompt, json.dumps(tokens)) for prompt, tokens in answers.items()]
        with self._connections.write() as db:
            db.conn.executemany("INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def note(self, key: str) -> Any:
        """The JSON value stored under `key`, or None."""
        rows = self._list("SELECT value FROM notes WHERE key = ?", [key])
        return json.loads(rows[0]["value"]) if rows else None

    def set_note(self, key: str, value: Any) -> None:
        """Store a small JSON value, such as a speed measured on this machine."""
        with self._connections.write() as db:
            set_note(db, key, value)

    def _list(self, sql: str, parameters: list[Any]) -> list[dict[str, Any]]:
        with self._connections.read() as db:
            return list(db.query(sql, parameters))

    # The whole

    def doctor(self) -> list[str]:
        """Read everything and check it: one line per problem; empty: all is well."""
        with self._connections.read() as db:
            integrity = [row["integrity_check"] for row in db.query("PRAGMA integrity_check")]
            found = [f"Database: {line}." for line in integrity if line != "ok"]
            for row in list(db.query("PRAGMA foreign_key_check")):
                found.append(f"Table {row['table']}, row {row['rowid']} refers to nothing.")
            for run in running_runs(db):
                if (run.lease_until or 0) < self._clock():
                    found.append(f"Run {run.id} is marked as running but its worker is silent.")
            return found + store_artifacts.problems(db)


def set_note(db: Database, key: str, value: Any) -> None:
    """Store a note inside the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [key, json.dumps(value)])
