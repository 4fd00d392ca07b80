"""Reads the whole database and says what is wrong with it."""

from __future__ import annotations

from sqlite_utils import Database

from upq.store import artifacts, conversations
from upq.store.run import running_runs


def problems(db: Database, now: float) -> list[str]:
    """One line per problem; empty: all is well. now: unix seconds."""
    integrity = [row["integrity_check"] for row in db.query("PRAGMA integrity_check")]
    found = [f"Database: {line}." for line in integrity if line != "ok"]
    for row in list(db.query("PRAGMA foreign_key_check")):
        found.append(f"Table {row['table']}, row {row['rowid']} refers to nothing.")
    for run in running_runs(db):
        if (run.lease_until or 0) < now:
            found.append(f"Run {run.id} is marked as running but its worker is silent.")
    return found + conversations.problems(db) + artifacts.problems(db)
