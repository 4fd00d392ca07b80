"""A worker's hold on a run: every write says which worker and attempt it comes from.

Whoever lost the run (its lease ran out and the run was handed on or ended) changes nothing: the
write finds no row, is rolled back and raises LostLease. A write that succeeds extends the lease.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sqlite_utils import Database

from upq.artifact import Artifact
from upq.files import clean_text
from upq.store import artifacts, asides
from upq.store.connections import Connections, next_revision

LOG_LINE_CHARACTERS = 4000
_MEASURED = (
    "label",
    "precision",
    "kl",
    "kl_p95",
    "top1",
    "ppl",
    "tokens",
    "bits_per_weight",
    "size_bytes",
    "seconds",
    "served_kl",
    "served_top1",
    "served_ppl",
    "served_by",
)


class LostLease(Exception):
    """The run belongs to somebody else now; stop and write nothing."""


class Lease:
    """What a worker may write about the run it holds. Safe to use from several threads."""

    def __init__(
        self,
        connections: Connections,
        clock: Callable[[], float],
        run_id: int,
        worker: str,
        attempt: int,
    ) -> None:
        self.run_id = run_id
        self.worker = worker
        self.attempt = attempt
        self._connections = connections
        self._clock = clock

    def renew(self, lease_s: float) -> bool:
        """Hold the run for `lease_s` more seconds. Returns whether a person asked to cancel it."""
        with self._connections.write() as db:
            self._live(db)
            (row,) = db.query(
                "UPDATE runs SET lease_s = ?, lease_until = ? WHERE id = ?"
                " RETURNING cancel_requested",
                [lease_s, self._clock() + lease_s, self.run_id],
            )
        return bool(row["cancel_requested"])

    def is_check_waiting(self) -> bool:
        """Whether a check waits that the run should step aside for at its next checkpoint."""
        with self._connections.read() as db:
            return asides.waiting_check(db, self.run_id) is not None

    def step_aside(self) -> int | None:
        """Note that the run steps aside now and return the check that goes first; None if none waits any more."""
        with self._fenced() as db:
            return asides.step_aside(db, self.run_id)

    def stage(self, name: str, total: int) -> None:
        """Enter a stage of `total` steps; the one before it ends now."""
        with self._fenced() as db:
            stages, worked_s = self._ended_stages(db)
            stages[name] = {
                "started": self._clock(),
                "ended": None,
                "total": total,
                "seconds": stages.get(name, {}).get("seconds", 0.0),
                "since": worked_s,
                "step": stages.get(name, {}).get("step", 0),
            }
            db.execute(
                "UPDATE runs SET stage = ?, stage_step = 0, stage_total = ?, detail = '',"
                " tokens_per_s = NULL, eta_s = NULL, stages = ? WHERE id = ?",
                [name, total, json.dumps(stages), self.run_id],
            )

    def progress(
        self,
        step: int,
        tokens_per_s: float | None,
        eta_s: float | None,
        detail: str,
        peak_bytes: int,
        gpu_peak_bytes: int | None,
    ) -> None:
        """`step` steps of the stage are done. The peaks are this process's; the run keeps the largest."""
        with self._fenced() as db:
            db.execute(
                "UPDATE runs SET stage_step = ?, tokens_per_s = ?, eta_s = ?, detail = ?,"
                " peak_bytes = max(coalesce(peak_bytes, 0), ?),"
                " gpu_peak_bytes = coalesce(max(gpu_peak_bytes, ?), ?, gpu_peak_bytes) WHERE id = ?",
                [
                    step,
                    tokens_per_s,
                    eta_s,
                    clean_text(detail),
                    peak_bytes,
                    gpu_peak_bytes,
                    gpu_peak_bytes,
                    self.run_id,
                ],
            )

    def metrics(self, points: Iterable[tuple[str, int, float, float]]) -> None:
        """Record points: series, step, value, and how many seconds ago it was taken.

        Raises ValueError if a value is not finite.
        """
        points = list(points)
        for series, step, value, _ in points:
            if not math.isfinite(value):  # SQLite would store NaN as NULL
                raise ValueError(f"{series} is {value} at step {step}; expected a finite number")
        with self._fenced() as db:
            worked_s = self._worked_s(db)
            db.conn.executemany(
                "INSERT OR REPLACE INTO metrics (run_id, series, step, value, at_s)"
                " VALUES (?, ?, ?, ?, ?)",
                [
                    (self.run_id, series, step, float(value), max(0.0, worked_s - age_s))
                    for series, step, value, age_s in points
                ],
            )

    def environment(self, facts: dict[str, Any]) -> None:
        """Note where the run is executed now; a place that is known already is not repeated."""
        with self._fenced() as db:
            (row,) = db.query("SELECT environments FROM runs WHERE id = ?", [self.run_id])
            known = json.loads(row["environments"])
            if facts not in known:
                db.execute(
                    "UPDATE runs SET environments = ? WHERE id = ?",
                    [json.dumps([*known, facts]), self.run_id],
                )

    def log(self, lines: Iterable[tuple[float, str]]) -> None:
        """Add (unix seconds, line) pairs to the run's log."""
        with self._fenced() as db:
            add_log(db, self.run_id, lines)

    def save_artifact(self, artifact: Artifact) -> None:
        """Store an artifact with all it holds in one transaction; a second one is a no-op."""
        prepared = artifacts.prepare(artifact)
        with self._fenced() as db:
            artifacts.insert(db, self.run_id, prepared, self._clock())

    def save_measurements(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store fidelity rows; one with a known label replaces it. Unknown keys go to `extra`."""
        with self._fenced() as db:
            add_measurements(db, self.run_id, rows)

    def save_check_result(self, precision: str, position: int, result: dict[str, Any]) -> None:
        """Store the verdicts on one prompt of a check run."""
        with self._fenced() as db:
            db.execute(
                "INSERT OR REPLACE INTO check_results VALUES (?, ?, ?, ?)",
                [self.run_id, precision, position, json.dumps(result)],
            )

    def finish(
        self,
        state: str,
        error_code: str = "",
        error_message: str = "",
        error_hint: str = "",
        traceback: str = "",
    ) -> None:
        """End the run. One that was to be cancelled ends cancelled, not interrupted."""
        with self._fenced() as db:
            add_log(db, self.run_id, [(self._clock(), line) for line in traceback.splitlines()])
            stages, _ = self._ended_stages(db)
            db.execute(
                "UPDATE runs SET"
                " state = iif(? = 'interrupted' AND cancel_requested, 'cancelled', ?),"
                " ended_at = ?, stages = ?, eta_s = NULL, tokens_per_s = NULL, lease_until = NULL,"
                " pid = NULL, error_code = ?, error_message = ?, error_hint = ? WHERE id = ?",
                [
                    state,
                    state,
                    self._clock(),
                    json.dumps(stages),
                    error_code,
                    clean_text(error_message),
                    clean_text(error_hint),
                    self.run_id,
                ],
            )

    def _owner(self) -> tuple[int, str, int]:
        return self.run_id, self.worker, self.attempt

    @contextmanager
    def _fenced(self) -> Iterator[Database]:
        """A write transaction in which the run is ours, seen as a change and as a sign of life."""
        with self._connections.write() as db:
            self._live(db)
            db.execute(
                "UPDATE runs SET revision = ? WHERE id = ?", [next_revision(db), self.run_id]
            )
            yield db
            with suppress(LostLease):  # finish has ended it
                self._live(db)

    def _live(self, db: Database) -> None:
        """A sign of life. What passed since the last one was worked, and no more than a lease if the clock jumped."""
        found = db.execute(
            "UPDATE runs SET worked_s = worked_s + max(0, min(lease_s, ? - (lease_until - lease_s))),"
            " lease_until = ? + lease_s"
            " WHERE id = ? AND worker = ? AND attempt = ? AND state = 'running'",
            [self._clock(), self._clock(), *self._owner()],
        )
        if found.rowcount == 0:
            raise LostLease(f"run {self.run_id}, attempt {self.attempt}")

    def _worked_s(self, db: Database) -> float:
        (row,) = db.query("SELECT worked_s FROM runs WHERE id = ?", [self.run_id])
        return row["worked_s"]

    def _ended_stages(self, db: Database) -> tuple[dict[str, Any], float]:
        """The stages, none of them going on, and the seconds worked so far.

        A stage's `seconds` are what was worked in it, over all attempts, and `step` is how far it ever came.
        """
        (row,) = db.query(
            "SELECT stage, stage_step, stages, worked_s FROM runs WHERE id = ?", [self.run_id]
        )
        stages, worked_s = json.loads(row["stages"]), row["worked_s"]
        current = stages.get(row["stage"])
        if current and current["ended"] is None:
            current["ended"] = self._clock()
            current["step"] = max(current.get("step", 0), row["stage_step"])
            current["seconds"] = (
                current.get("seconds", 0.0) + worked_s - current.get("since", worked_s)
            )
        return stages, worked_s


def add_log(db: Database, run_id: int, lines: Iterable[tuple[float, str]]) -> None:
    """Insert log lines inside the caller's transaction."""
    db.conn.executemany(
        "INSERT INTO log (run_id, at, line) VALUES (?, ?, ?)",
        [(run_id, at, clean_text(line)[:LOG_LINE_CHARACTERS]) for at, line in lines],
    )


def add_measurements(db: Database, run_id: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert fidelity rows inside the caller's transaction; one with a known label replaces it.

    Raises ValueError if a value is not finite.
    """
    db.conn.executemany(
        "INSERT OR REPLACE INTO measurements (run_id, label, precision, kl, kl_p95, top1,"
        " ppl, tokens, bits_per_weight, size_bytes, seconds, served_kl, served_top1, served_ppl,"
        " served_by, extra) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(run_id, *_measurement(row)) for row in rows],
    )


def _measurement(row: Mapping[str, Any]) -> tuple[Any, ...]:
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} of {row['label']} is {value}; expected a finite number")
    extra = {name: value for name, value in row.items() if name not in _MEASURED}
    return (*(row.get(name) for name in _MEASURED), json.dumps(extra))
