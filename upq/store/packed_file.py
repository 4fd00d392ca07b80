"""A run as a file of its own: an SQLite database with the tables of ours and the rows of one run.

What a stranger's file may do is settled before a row of it is read. Its tables must be, word for word, those that this
program makes, so there are no triggers, views or virtual tables; it is opened for reading only, and SQLite's own check
has to find every page used once, so reading it ends.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlite_utils import Database

from upq.errors import UserError
from upq.files import file_problem, staging_folder
from upq.store.connections import Connections, migrate, newer_database
from upq.store.tables import MIGRATIONS

#: What SQLite keeps in the header of a packed run: "UPQr".
APPLICATION_ID = 0x55505172
#: Largest file, 1 TiB.
MOST_BYTES = 1 << 40
#: Largest value or row, 64 MiB: four parts of a blob.
MOST_ROW_BYTES = 1 << 26
#: Steps of SQLite's machine in which the list of tables has to be read, and between two looks at how many there were.
MOST_STEPS, STEPS = 10_000_000, 100_000
#: The beginning of a file of SQLite, and where its header has the version of the tables and the application's id.
MAGIC, VERSION_AT, ID_AT, HEADER_BYTES = b"SQLite format 3\0", 60, 68, 100


def damaged(path: Path, problem: str) -> UserError:
    """The error of a packed run that cannot be used. problem: words that go on from the file's name and a colon."""
    return UserError(
        "pack_damaged",
        f"{path.name} is not a whole packed run: {problem}.",
        "Pack the run again where it was made, or copy the file again.",
    )


@contextmanager
def created(path: Path) -> Iterator[Database]:
    """A new packed file in one transaction. Raises what SQLite raises."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        db = Database(connection)
        db.execute("PRAGMA journal_mode = OFF")  # half a file is thrown away anyway
        db.execute("PRAGMA synchronous = OFF")
        _make_tables(db, len(MIGRATIONS))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("BEGIN")
        yield db
        connection.execute("COMMIT")


@contextmanager
def opened(path: Path, folder: Path) -> Iterator[Database]:
    """The packed file of a stranger, vetted and with the tables of today, for reading.

    folder: where a copy of an older one is brought up to date. Raises UserError: not_a_pack, newer_database,
    pack_damaged, disk_full.
    """
    version = _version(path)
    if version == len(MIGRATIONS):
        with _readable(path, path, version) as db:
            yield db
        return
    with staging_folder(folder) as staging:
        copy = staging / "copy"
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise UserError(
                "disk_full",
                f"{path.name} is of an older version and could not be copied: {error.strerror}.",
                "Free some space on the disk of the data folder.",
            ) from error
        with _readable(copy, path, version):
            pass
        try:
            with closing(Connections(copy)) as connections:
                migrate(connections)
        except sqlite3.DatabaseError as error:
            raise damaged(path, str(error)) from error
        with _readable(copy, path, len(MIGRATIONS)) as db:
            yield db


def _version(path: Path) -> int:
    """The version of the tables, as the file's header says."""
    problem = file_problem(path, MOST_BYTES)
    header = b""
    if not problem:
        try:
            with path.open("rb") as file:
                header = file.read(HEADER_BYTES)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
    if not problem and not (
        len(header) == HEADER_BYTES
        and header.startswith(MAGIC)
        and struct.unpack_from(">I", header, ID_AT)[0] == APPLICATION_ID
    ):
        problem = "is another kind of file"
    if problem:
        raise UserError(
            "not_a_pack",
            f"{path} {problem}; expected what `python -m upq pack` writes.",
            "Check the path.",
        )
    version: int = struct.unpack_from(">i", header, VERSION_AT)[0]
    if version > len(MIGRATIONS):
        raise newer_database(path.name, version)
    if version < 1:
        raise damaged(path, f"its tables have version {version}")
    return version


@contextmanager
def _readable(path: Path, named: Path, version: int) -> Iterator[Database]:
    """A connection that can only read, to a file that SQLite finds in order. named: the file in messages."""
    address = (
        f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # looks at no journal and takes no lock
    )
    with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as connection:
        db = Database(connection)
        try:
            _vet(db, version)
        except sqlite3.DatabaseError as error:
            raise damaged(named, str(error)) from error
        except ValueError as error:
            raise damaged(named, str(error)) from error
        yield db


def _vet(db: Database, version: int) -> None:
    """Raises ValueError in words, or what SQLite raises."""
    if sys.version_info >= (3, 11):
        db.conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_ROW_BYTES)
    db.conn.execute("PRAGMA trusted_schema = OFF")
    left = MOST_STEPS

    def stop() -> bool:
        nonlocal left
        left -= STEPS
        return left < 0

    db.conn.set_progress_handler(stop, STEPS)
    found = _schema(db)
    db.conn.set_progress_handler(None, 0)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        expected = Database(connection)
        _make_tables(expected, version)
        if found != _schema(expected):
            raise ValueError("its tables are not those of a packed run")
    (problem,) = db.conn.execute("PRAGMA quick_check(1)").fetchone()
    if problem != "ok":
        raise ValueError(" ".join(problem.split()))


def _schema(db: Database) -> list[tuple[str, ...]]:
    rows = db.conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    return [tuple(" ".join(str(value).split()) for value in row) for row in rows]


def _make_tables(db: Database, version: int) -> None:
    for script in MIGRATIONS[:version]:
        db.executescript(script)
    db.execute(f"PRAGMA user_version = {version}")
