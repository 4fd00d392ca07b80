"""Runs, conversations and votes change their owner: a visitor who signs in takes along what the browser had."""

from __future__ import annotations

from sqlite_utils import Database

from upq.store.connections import next_revision


def hand_over(db: Database, old: str, new: str) -> None:
    """Give all that is of one owner to another one, inside of a transaction. A vote on what the new one has voted on
    stays where it is.
    """
    if db.execute("UPDATE runs SET owner = ? WHERE owner = ?", [new, old]).rowcount:
        db.execute("UPDATE runs SET revision = ? WHERE owner = ?", [next_revision(db), new])
    db.execute("UPDATE conversations SET owner = ? WHERE owner = ?", [new, old])
    db.execute("UPDATE OR IGNORE votes SET owner = ? WHERE owner = ?", [new, old])
