"""How a connection to the database is made and its tables brought up to date, and what its errors mean to a person.

PRAGMA user_version counts the migrations that have run, and each one runs in the same transaction as
its count. Connections are in autocommit mode and every change is made inside
`Connections.write`, which takes the write lock first: a transaction that reads before it has the
lock would fail at once instead of waiting its turn.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from upq.errors import UserError
from upq.store.tables import MIGRATIONS

BUSY_TIMEOUT_S = 10.0


class Connections:
    """Connections to one database file, lent to one thread at a time and kept for the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[Database] = []

    @contextmanager
    def read(self) -> Iterator[Database]:
        """A connection outside a transaction. Raises UserError for what SQLite reports."""
        try:
            db = self._take()
            try:
                yield db
            finally:
                self._idle.append(db)
        except sqlite3.DatabaseError as error:
            readable = _readable(error)
            if readable is None:
                raise
            raise readable from error

    @contextmanager
    def write(self) -> Iterator[Database]:
        """A connection that holds the write lock; commits at the end, rolls back on exceptions."""
        with self.read() as db:
            db.conn.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.conn.execute("COMMIT")
            finally:
                db.rollback()  # does nothing after a commit

    @contextmanager
    def snapshot(self) -> Iterator[Database]:
        """A connection that reads one state of the database; writers wait meanwhile where there is no WAL."""
        with self.read() as db:
            db.conn.execute("BEGIN")
            try:
                yield db
            finally:
                db.rollback()

    def _take(self) -> Database:
        try:
            return self._idle.pop()
        except IndexError:
            return connect(self.path)

    def close(self) -> None:
        """Close the connections that nobody is using."""
        while self._idle:
            self._idle.pop().close()


def connect(path: Path) -> Database:
    """Open a connection with our settings. Any thread may use it, one at a time."""
    conn = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    db = Database(conn)
    try:
        # WAL on the SQLite versions below can corrupt a database that two connections write to.
        if _wal_is_safe(sqlite3.sqlite_version_info):
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
        else:
            db.execute("PRAGMA journal_mode = TRUNCATE")
            db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def migrate(connections: Connections) -> None:
    """Bring the tables up to date; does nothing to a current database.

    Raises UserError("newer_database") for a file that a later version of this program wrote.
    """
    while (version := _version(connections)) < len(MIGRATIONS):
        with connections.write() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] == version:
                db.executescript(MIGRATIONS[version])
                db.execute(f"PRAGMA user_version = {version + 1}")


def next_revision(db: Database) -> int:
    """Count one more change; call inside a write transaction."""
    (row,) = db.query("UPDATE revision SET value = value + 1 RETURNING value")
    return row["value"]


def _version(connections: Connections) -> int:
    with connections.read() as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise newer_database("The database", version)
    return version


def newer_database(what: str, version: int) -> UserError:
    """The error of tables that a later version of this program made. what: the file, as a sentence begins with it."""
    return UserError(
        "newer_database",
        f"{what} has schema version {version}; this program knows up to {len(MIGRATIONS)}.",
        "Use the newer version of UPQ Studio that wrote it, or another data folder.",
    )


def _wal_is_safe(version: tuple[int, ...]) -> bool:
    return (
        version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    )


def _readable(error: sqlite3.DatabaseError) -> UserError | None:
    """SQLite's error as one for people; None for a mistake in our own SQL."""
    text = str(error)
    if "locked" in text:
        return UserError(
            "database_busy",
            f"The database was busy for more than {BUSY_TIMEOUT_S:.0f} s.",
            "Try again in a moment; a large artifact may be on its way to the disk.",
        )
    if "full" in text or "disk I/O error" in text:
        return UserError(
            "disk_full",
            f"The database could not be written: {text}.",
            "Free some space on the disk of the data folder, then resume the run.",
        )
    if "unable to open" in text or "readonly" in text:
        return UserError(
            "not_writable",
            f"The database cannot be opened for writing: {text}.",
            "Check the permissions of the data folder, or choose another one.",
        )
    if "malformed" in text or "not a database" in text:
        return UserError(
            "database_damaged",
            f"The database file is damaged: {text}.",
            "Restore a backup, or choose another data folder.",
        )
    return None
