"""The queue: which run is next, and how a run leaves its worker. Runs start by age, but for upq.store.asides.

All functions work inside the caller's transaction.
"""

from __future__ import annotations

from typing import Any

from sqlite_utils import Database

from upq.store import asides
from upq.store.connections import next_revision
from upq.store.lease import add_log
from upq.store.run import Ending, Run, RunState, from_row

#: So many dead workers in a row fail a run.
MAX_CRASHES = 3


def waiting(db: Database) -> list[int]:
    """The ids of the runs in the queue, the next one first."""
    return [row["id"] for row in db.query(asides.QUEUE)]


def claim(db: Database, worker: str, pid: int, lease_s: float, now: float) -> Run | None:
    """Give the next run to a worker for `lease_s` seconds; None if the queue is empty."""
    ids = waiting(db)
    if not ids:
        return None
    (row,) = db.query(
        "UPDATE runs SET state = 'running', worker = ?, pid = ?, lease_s = ?, lease_until = ?,"
        " started_at = coalesce(started_at, ?), ended_at = NULL, attempt = attempt + 1,"
        " error_code = '', error_message = '', error_hint = '', aside_for = NULL, revision = ?"
        " WHERE id = ? RETURNING *",
        [worker, pid, lease_s, now + lease_s, now, next_revision(db), ids[0]],
    )
    return from_row(row)


def position(db: Database, run_id: int) -> int:
    """The place of a run in the queue, 1 for the next one; 0: it is not in the queue."""
    ids = waiting(db)
    return ids.index(run_id) + 1 if run_id in ids else 0


def end(
    db: Database,
    run_id: int,
    state: RunState,
    now: float,
    error: tuple[str, str, str] = ("", "", ""),
) -> None:
    """End a run that no worker holds. error: code, message and hint."""
    db.execute(
        "UPDATE runs SET state = ?, ended_at = ?, lease_until = NULL, pid = NULL,"
        " eta_s = NULL, tokens_per_s = NULL, error_code = ?, error_message = ?,"
        " error_hint = ?, revision = ? WHERE id = ?",
        [state, now, *error, next_revision(db), run_id],
    )


def give_up(db: Database, run: Run, ending: Ending, now: float) -> None:
    """End a run whose worker is lost: cancelled if that was asked for, failed at the third crash, else interrupted."""
    if run.cancel_requested:
        end(db, run.id, "cancelled", now)
        add_log(db, run.id, [(now, f"Cancelled: {ending.note}.")])
        return
    crashes = run.crashes + 1
    db.execute("UPDATE runs SET crashes = ? WHERE id = ?", [crashes, run.id])
    stage = run.stage or "start"
    reason = f"Crash {crashes} of {MAX_CRASHES} in stage {stage}: {ending.note}."
    add_log(db, run.id, [(now, reason)])
    state = "failed" if crashes >= MAX_CRASHES else "interrupted"
    end(db, run.id, state, now, ("worker_crashed", reason, ending.hint))


def resume(db: Database, run: Run, now: float) -> str:
    """Queue an ended run again. Returns a sentence to show."""
    db.execute(
        "UPDATE runs SET state = 'queued', crashes = 0, cancel_requested = 0,"
        " ended_at = NULL, error_code = '', error_message = '', error_hint = '', aside_for = NULL,"
        " revision = ? WHERE id = ?",
        [next_revision(db), run.id],
    )
    add_log(db, run.id, [(now, "Resumed by hand.")])
    kept = "with what is left of it" if run.kind == "check" else "from its last checkpoint"
    where = f"goes on {kept}" if run.has_checkpoint else "starts over"
    return f"Run {run.id} is queued again and {where}."


def requeue_interrupted(db: Database) -> list[int]:
    """Queue the interrupted runs again. Returns their ids."""
    found: list[dict[str, Any]] = list(
        db.query(
            "UPDATE runs SET state = 'queued', ended_at = NULL, revision = ?"
            " WHERE state = 'interrupted' RETURNING id",
            [next_revision(db)],
        )
    )
    return sorted(row["id"] for row in found)
