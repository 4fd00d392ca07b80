"""The database itself: busy, old, new, damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store, connections


def test_a_busy_database_is_reported_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.05)
    store = Store(tmp_path / "upq.db")
    other = sqlite3.connect(tmp_path / "upq.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError) as caught:
        store.enqueue(RunConfig())
    assert caught.value.code == "database_busy"
    assert store.runs() == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    assert store.enqueue(RunConfig()) == 1
    store.close()


def test_an_empty_file_of_version_0_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "upq.db").touch()
    for _ in range(2):
        store = Store(tmp_path / "upq.db")
        store.enqueue(RunConfig())
        assert store.doctor() == []
        store.close()
    with sqlite3.connect(tmp_path / "upq.db") as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(connections.MIGRATIONS),)
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    raw.close()


def test_a_migration_keeps_rows_and_one_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upq.db"
    first = Store(path)
    first.enqueue(RunConfig(), name="kept")
    first.close()
    released = connections.MIGRATIONS
    added = "CREATE TABLE later (x INTEGER) STRICT;"
    monkeypatch.setattr(connections, "MIGRATIONS", (*released, added + "CREATE TABLE nonsense;"))
    with pytest.raises(sqlite3.OperationalError):
        Store(path)
    monkeypatch.setattr(connections, "MIGRATIONS", (*released, added))
    second = Store(path)
    assert second.run(1).name == "kept"
    assert second.doctor() == []
    second.close()


def test_a_run_of_the_first_schema_keeps_its_time_and_its_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upq.db"
    with monkeypatch.context() as first:
        first.setattr(connections, "MIGRATIONS", connections.MIGRATIONS[:1])
        Store(path).close()
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute(
        "INSERT INTO runs (kind, state, name, model, method, preset, config, created_at,"
        " started_at, ended_at, stage, stages) VALUES ('quantize', 'done', '', 'm', 'upq', 'quick',"
        """ '{}', 1, 2, 9, 'warm', '{"warm": {"total": 1}, "int2": {"total": 2}}')"""
    )
    raw.execute("INSERT INTO metrics VALUES (1, 'jsd', 3, 0.5)")
    raw.execute(
        "INSERT INTO measurements (run_id, label, precision, kl, extra)"
        """ VALUES (1, 'INT4', 'INT4', 0.25, '{"kl_low": 0.2}')"""
    )
    raw.close()
    store = Store(path)
    run = store.run(1)
    assert (run.worked_s, run.environments) == (7.0, [])
    assert run.stages == {"int2": {"total": 1}, "int2_distill": {"total": 2}}
    assert run.stage == "int2"
    assert store.metrics(1) == [{"series": "jsd", "step": 3, "value": 0.5, "at_s": None}]
    (measured,) = store.measurements(1)
    assert (measured["kl"], measured["extra"]) == (0.25, {"kl_low": 0.2})
    assert measured["served_kl"] is measured["served_by"] is None, "it was not measured then"
    assert store.doctor() == []
    store.close()


def test_a_newer_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "upq.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE future (x)")
    raw.execute("PRAGMA user_version = 999")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="schema version 999") as caught:
        Store(path)
    assert caught.value.code == "newer_database"
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_reported_in_words(tmp_path: Path) -> None:
    (tmp_path / "upq.db").write_bytes(b"this is text, not a database" * 100)
    with pytest.raises(UserError) as caught:
        Store(tmp_path / "upq.db")
    assert caught.value.code == "database_damaged"


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
    ],
)
def test_wal_is_used_only_where_it_cannot_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], safe: bool
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    db = connections.connect(tmp_path / "upq.db")
    pragmas = ("journal_mode", "synchronous", "foreign_keys")
    found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert found == (["wal", 1, 1] if safe else ["truncate", 2, 1])
    db.close()
