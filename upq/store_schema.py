"""The database's tables, how a connection to it is made, and what its errors mean to a person.

Migrations are scripts; PRAGMA user_version counts how many have run, and each one runs in the same
transaction as its count. Connections are in autocommit mode and every change is made inside
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

BUSY_TIMEOUT_S = 10.0

_TABLES = """
CREATE TABLE revision (value INTEGER NOT NULL) STRICT;
INSERT INTO revision VALUES (0);

CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: checkpoint folders carry it
    kind TEXT NOT NULL CHECK (kind IN ('quantize', 'check')),
    state TEXT NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    preset TEXT NOT NULL,
    config TEXT NOT NULL,
    parent_id INTEGER REFERENCES runs (id) ON DELETE CASCADE,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    stage TEXT NOT NULL DEFAULT '',
    stage_step INTEGER NOT NULL DEFAULT 0,
    stage_total INTEGER NOT NULL DEFAULT 0,
    detail TEXT NOT NULL DEFAULT '',
    tokens_per_s REAL,
    eta_s REAL,
    peak_bytes INTEGER,
    stages TEXT NOT NULL DEFAULT '{}',
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    worker TEXT,
    pid INTEGER,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    lease_s REAL,
    lease_until REAL,
    error_code TEXT NOT NULL DEFAULT '',
    error_message TEXT NOT NULL DEFAULT '',
    error_hint TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 0,
    CHECK (state <> 'running' OR (worker IS NOT NULL AND lease_until IS NOT NULL))
) STRICT;
CREATE INDEX runs_by_state ON runs (state, id);
CREATE INDEX runs_by_parent ON runs (parent_id);

CREATE TABLE metrics (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    series TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run_id, series, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    at REAL NOT NULL,
    line TEXT NOT NULL
) STRICT;
CREATE INDEX log_by_run ON log (run_id, id);

CREATE TABLE measurements (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    label TEXT NOT NULL,
    precision TEXT NOT NULL,
    kl REAL,
    kl_p95 REAL,
    top1 REAL,
    ppl REAL,
    tokens INTEGER,
    bits_per_weight REAL,
    size_bytes INTEGER,
    seconds REAL,
    extra TEXT NOT NULL,
    PRIMARY KEY (run_id, label)
) STRICT;

CREATE TABLE check_results (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    precision TEXT NOT NULL,
    position INTEGER NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (run_id, precision, position)
) STRICT;

CREATE TABLE answers (
    key TEXT NOT NULL,
    prompt TEXT NOT NULL,
    tokens TEXT NOT NULL,
    PRIMARY KEY (key, prompt)
) STRICT;

CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE parts (
    blob_digest TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (blob_digest, position)
) STRICT;

CREATE TABLE artifacts (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    precision TEXT NOT NULL,
    manifest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    bits_per_weight REAL NOT NULL,
    created_at REAL NOT NULL,
    UNIQUE (run_id, precision)
) STRICT;

CREATE TABLE artifact_tensors (
    artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    dtype TEXT NOT NULL,
    shape TEXT NOT NULL,
    blob_digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (artifact_id, name)
) STRICT;
CREATE INDEX tensors_by_blob ON artifact_tensors (blob_digest);

CREATE TABLE artifact_files (
    artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    blob_digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (artifact_id, name)
) STRICT;
CREATE INDEX files_by_blob ON artifact_files (blob_digest);
"""

#: Time is counted while a worker holds the run, so a pause is nobody's training time. Points of older runs have none.
_PROVENANCE = """
ALTER TABLE runs ADD COLUMN worked_s REAL NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN environments TEXT NOT NULL DEFAULT '[]';
ALTER TABLE metrics ADD COLUMN at_s REAL;
UPDATE runs SET worked_s = max(0, ended_at - started_at) WHERE ended_at > started_at;
UPDATE runs SET  -- stages are named as the settings are
    stages = replace(replace(stages, '"int2":', '"int2_distill":'), '"warm":', '"int2":'),
    stage = CASE stage WHEN 'int2' THEN 'int2_distill' WHEN 'warm' THEN 'int2' ELSE stage END
WHERE kind = 'quantize';
"""

#: Scripts that bring a database from version n to n + 1. Released ones never change.
MIGRATIONS: tuple[str, ...] = (_TABLES, _PROVENANCE)


class Connections:
    """Connections to one database file, lent to one thread at a time and kept for the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
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

    def _take(self) -> Database:
        try:
            return self._idle.pop()
        except IndexError:
            return connect(self._path)

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
        raise UserError(
            "newer_database",
            f"The database has schema version {version}; this program knows up to "
            f"{len(MIGRATIONS)}.",
            "Use the newer version of UPQ Studio that wrote it, or another data folder.",
        )
    return version


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
