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
from upq.files import clean_text
from upq.store import adopt as store_adopt
from upq.store import artifacts as store_artifacts
from upq.store import conversations as store_conversations
from upq.store import examine as store_examine
from upq.store import labels, owners, queue
from upq.store import pack as store_pack
from upq.store import unpack as store_unpack
from upq.store import votes as store_votes
from upq.store.artifacts import ArtifactRow, Prepared
from upq.store.connections import Connections, migrate, next_revision
from upq.store.labels import Labels, Wanted
from upq.store.lease import Lease
from upq.store.pack import Moved
from upq.store.run import (
    GONE,
    HOUSE,
    SILENT,
    Ending,
    Run,
    find_run,
    require_ended,
    running_runs,
)


class Store:
    """The database at `path`, created if absent. Safe to use from several threads."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open and migrate. Raises UserError: newer_database, database_damaged, not_writable."""
        self._connections = Connections(path)
        self._clock = clock
        migrate(self._connections)
        self.conversations = store_conversations.Conversations(self._connections, clock)
        self.votes = store_votes.Votes(self._connections, clock)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._connections.close()

    # The queue, as the app sees it

    @property
    def owner(self) -> str:
        """Whom the runs belong to that are queued now."""
        return HOUSE

    def enqueue(self, config: RunConfig, *, name: str = "", note: str = "") -> int:
        """Put a quantization run at the end of the queue and return its id. Raises UserError("bad_label")."""
        values = dataclasses.asdict(config)
        row = {"model": config.model.source, "method": config.method, "preset": config.preset}
        written = {"name": labels.clean_name(name), "note": labels.clean_note(note)}
        return self._enqueue("quantize", values, row | written)

    def enqueue_check(self, config: CheckConfig, *, name: str = "") -> int:
        """Put a check run at the end of the queue. Raises UserError: run_not_found, bad_label."""
        if config.run_id is not None:
            self.run(config.run_id)
        row = {"parent_id": config.run_id, "model": config.model, "method": "", "preset": ""}
        return self._enqueue("check", config.to_values(), row | {"name": labels.clean_name(name)})

    def _enqueue(self, kind: str, config: dict[str, Any], row: dict[str, Any]) -> int:
        row = {"parent_id": None, "note": ""} | row
        texts = ("name", "note", "model", "method", "preset")
        with self._connections.write() as db:
            cursor = db.execute(
                "INSERT INTO runs (kind, config, parent_id, created_at, revision, owner, name,"
                " note, model, method, preset) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    kind,
                    json.dumps(config),
                    row["parent_id"],
                    self._clock(),
                    next_revision(db),
                    self.owner,
                    *(clean_text(row[name]) for name in texts),
                ],
            )
            return int(cursor.lastrowid or 0)

    def label(self, run_id: int, written: Labels) -> Run:
        """Write a name, a note or a star on a run and return it. Raises UserError: run_not_found, bad_label."""
        with self._connections.write() as db:
            return labels.write(db, run_id, written)

    def hand_over(self, old: str, new: str) -> None:
        """Give the runs, conversations and votes of one visitor to another."""
        with self._connections.write() as db:
            owners.hand_over(db, old, new)

    def search(self, wanted: Wanted, limit: int = 100) -> list[Run]:
        """The runs that fit, the newest first."""
        with self._connections.read() as db:
            return labels.search(db, wanted, limit)

    def run(self, run_id: int) -> Run:
        """The run with this id. Raises UserError("run_not_found")."""
        with self._connections.read() as db:
            return find_run(db, run_id)

    def runs(
        self, limit: int = 100, kind: str | None = None, owner: str | None = None
    ) -> list[Run]:
        """The newest runs first. owner: those of the house and of this owner only; None: all."""
        return self.search(Wanted(kind=kind, owner=owner), limit)

    def live_run(self) -> Run | None:
        """The run that a worker is on, if any."""
        with self._connections.read() as db:
            running = running_runs(db)
        return running[0] if running else None

    def queue_position(self, run_id: int) -> int:
        """1: the next to start; 0: not in the queue."""
        with self._connections.read() as db:
            return queue.position(db, run_id)

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
                queue.end(db, run_id, "cancelled", self._clock())
                return f"Run {run_id} is cancelled; it was not running."
            if run.state != "running":
                return f"Run {run_id} is already {run.state}; there is nothing to cancel."
            if run.cancel_requested:
                return f"Run {run_id} is already stopping."
            db.execute(
                "UPDATE runs SET cancel_requested = 1, revision = ? WHERE id = ?",
                [next_revision(db), run_id],
            )
            return f"Run {run_id} was asked to stop at its next safe point; it can be resumed."

    def resume(self, run_id: int) -> str:
        """Queue a failed, cancelled or interrupted run again. Returns a sentence to show."""
        with self._connections.write() as db:
            run = find_run(db, run_id)
            if run.state not in ("failed", "cancelled", "interrupted"):
                return f"Run {run_id} is {run.state}; there is nothing to resume."
            return queue.resume(db, run, self._clock())

    def require_ended(self, run_id: int) -> None:
        """Raise what `delete` would raise now, and delete nothing."""
        with self._connections.read() as db:
            require_ended(db, run_id)

    def delete(self, run_id: int) -> None:
        """Remove an ended run, its checks, and all that they stored, except what others share.

        Raises UserError: run_not_found, run_is_running (also for a queued run or check).
        """
        with self._connections.write() as db:
            require_ended(db, run_id)
            db.execute("DELETE FROM runs WHERE id = ?", [run_id])
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

        run: columns, `measurements`, `metrics` and `checks`; line: its log. Once for each `note`, and only while no
        quantization is done: else nothing is written, and the answer is None.
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
        """Take the next run of the queue for `lease_s` seconds; None if it is empty."""
        with self._connections.read() as db:
            if not list(db.query("SELECT 1 FROM runs WHERE state = 'queued' LIMIT 1")):
                return None  # the usual answer, without the write lock
        with self._connections.write() as db:
            return queue.claim(db, worker, pid, lease_s, self._clock())

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
                queue.give_up(db, run, ending, self._clock())
        return [run.id for run, _ in lost]

    def has_left(self, worker: str, revision: int) -> bool:
        """Whether a worker has ended the run that it took after the database had this revision."""
        with self._connections.read() as db:
            sql = "SELECT 1 FROM runs WHERE worker = ? AND revision > ? AND state != 'running'"
            return bool(list(db.query(sql, [worker, revision])))

    def requeue_interrupted(self) -> list[int]:
        """Queue the interrupted runs again. Returns their ids."""
        with self._connections.read() as db:
            if not list(db.query("SELECT 1 FROM runs WHERE state = 'interrupted' LIMIT 1")):
                return []
        with self._connections.write() as db:
            return queue.requeue_interrupted(db)

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

    def text_bytes(self, run_id: int) -> int:
        """Characters of what a run has written besides its artifacts: its log and the results of a check."""
        sql = (
            "SELECT (SELECT coalesce(sum(length(line)), 0) FROM log WHERE run_id = ?)"
            " + (SELECT coalesce(sum(length(result)), 0) FROM check_results WHERE run_id = ?) AS size"
        )
        (row,) = self._list(sql, [run_id, run_id])
        return row["size"]

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
            return store_examine.problems(db, self._clock())


def set_note(db: Database, key: str, value: Any) -> None:
    """Store a note inside the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [key, json.dumps(value)])
