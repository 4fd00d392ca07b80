"""When a quantization at work steps aside for a check that waits, and what is next then.

It steps aside behind a checkpoint, so nothing but its start is done twice, and once in EVERY_S of its own work at most,
so that a flood of checks cannot starve it. It steps aside for one check each time and goes on right behind it.
"""

from __future__ import annotations

from sqlite_utils import Database

#: Seconds that a quantization works before it steps aside once more.
EVERY_S = 600.0
#: The waiting runs: the check that a run stepped aside for, then that run, then all others by age.
QUEUE = (
    "SELECT id FROM runs WHERE state = 'queued' ORDER BY"
    " CASE WHEN id IN (SELECT aside_for FROM runs WHERE state IN ('queued', 'interrupted')) THEN 0"
    " WHEN aside_for IS NOT NULL THEN 1 ELSE 2 END, id"
)


def waiting_check(db: Database, run_id: int) -> int | None:
    """The oldest check that a quantization at work should step aside for now, or None.

    A check of a run that is not finished waits for the models that the run is still making.
    """
    found = list(
        db.query(
            "SELECT queued.id FROM runs AS queued JOIN runs AS live ON live.id = ?"
            " LEFT JOIN runs AS parent ON parent.id = queued.parent_id"
            " WHERE queued.state = 'queued' AND queued.kind = 'check' AND live.kind = 'quantize'"
            " AND coalesce(parent.state, 'done') NOT IN ('queued', 'running', 'interrupted')"
            " AND (live.aside_at_s IS NULL OR live.worked_s - live.aside_at_s >= ?)"
            " ORDER BY queued.id LIMIT 1",
            [run_id, EVERY_S],
        )
    )
    return found[0]["id"] if found else None


def step_aside(db: Database, run_id: int) -> int | None:
    """Note that a run steps aside and return the check that goes first; None if no check waits any more."""
    check = waiting_check(db, run_id)
    if check is not None:
        db.execute(
            "UPDATE runs SET aside_for = ?, aside_at_s = worked_s WHERE id = ?", [check, run_id]
        )
    return check
