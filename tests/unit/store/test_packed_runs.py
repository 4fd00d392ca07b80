"""A run goes from one data folder to another as one file, whole or not at all."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.packed_cases import LARGE, checked, finished, refused
from tests.support.store_cases import Clock, a_check
from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store, connections, packed_file, tables


def kept(store: Store, run_id: int) -> dict[str, Any]:
    """What pages and commands read of a run and its checks, without the numbers that the database gave."""

    def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "run_id": 0} for row in found]

    run = store.run(run_id)
    same = (
        "kind state name model method preset config created_at started_at ended_at stages worked_s"
    )
    loaded = [store.load_artifact(run_id, row.precision) for row in store.artifacts(run_id)]
    return {
        **{name: getattr(run, name) for name in (*same.split(), "peak_bytes", "environments")},
        "metrics": store.metrics(run_id),
        "log": [line for line in store.log_lines(run_id) if not line[1].startswith("Unpacked")],
        "measurements": rows(store.measurements(run_id)),
        "artifacts": [
            (
                one.manifest,
                one.files,
                {name: t.numpy().tobytes() for name, t in one.tensors.items()},
            )
            for one in loaded
        ],
        "checks": [
            (one.config | {"run_id": 0}, one.created_at, store.check_results(one.id))
            for one in store.runs(kind="check")
            if one.parent_id == run_id
        ],
    }


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "other").mkdir()
    opened = Store(tmp_path / "other" / "upq.db")
    opened.enqueue(RunConfig())
    opened.request_cancel(1)  # so that numbers differ
    yield opened
    assert opened.doctor() == []
    opened.close()


def test_all_of_a_run_arrives_under_new_numbers(store: Store, other: Store, tmp_path: Path) -> None:
    run_id = finished(store, LARGE, checks=2)
    waiting = store.enqueue_check(a_check(run_id))
    moved = store.pack(run_id, tmp_path / "run.upq")
    store.request_cancel(waiting)
    assert (moved.run_id, moved.precisions, moved.checks) == (run_id, ["INT4", "INT2"], 2)
    arrived = other.unpack(tmp_path / "run.upq")
    assert (arrived.run_id, arrived.precisions, arrived.checks) == (2, ["INT4", "INT2"], 2)
    assert arrived.is_new
    before = kept(store, run_id)
    before["checks"] = [one for one in before["checks"] if one[2]]
    assert kept(other, 2) == before
    run = other.run(2)
    assert (run.attempt, run.worker, run.lease_until) == (0, None, None)
    assert {one.config["run_id"] for one in other.runs(kind="check")} == {2}
    assert other.log_lines(2)[-1][1] == "Unpacked from run.upq."


def test_a_packed_file_names_no_worker_and_holds_no_other_run(store: Store, tmp_path: Path) -> None:
    run_id = finished(store)
    store.enqueue(RunConfig(), name="of somebody else")
    store.save_answers("key", {"prompt": [1]})
    store.set_note("speed", 5)
    store.pack(run_id, tmp_path / "run.upq")
    raw = sqlite3.connect(tmp_path / "run.upq")
    sql = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM answers), count(*) FROM notes"
    counts = raw.execute(sql).fetchone()
    workers = raw.execute("SELECT DISTINCT worker, pid FROM runs").fetchall()
    raw.close()
    assert (counts, workers) == ((2, 0, 0), [(None, None)])
    assert b"of somebody else" not in (tmp_path / "run.upq").read_bytes()


def test_a_run_is_taken_in_once_and_new_checks_of_it_later(
    store: Store, other: Store, clock: Clock, tmp_path: Path
) -> None:
    run_id = finished(store)
    first, second = tmp_path / "first.upq", tmp_path / "second.upq"
    store.pack(run_id, first)
    other.unpack(first)
    before = kept(other, 2)
    again = other.unpack(first)
    assert (again.run_id, again.checks, again.is_new) == (2, 0, False)
    assert kept(other, 2) == before
    assert not store.unpack(first).is_new, "where it was made it is there as well"
    clock.now += 1
    checked(store, run_id)
    store.pack(run_id, second)
    later = other.unpack(second)
    assert (later.run_id, later.checks, later.is_new) == (2, 1, False)
    assert len(other.runs()) == 4
    other.delete(2)
    assert other.unpack(first).is_new, "a deleted one may come back"


def test_only_a_finished_run_is_packed_and_only_into_a_new_file(
    store: Store, tmp_path: Path
) -> None:
    run_id = finished(store)
    waiting = store.enqueue(RunConfig())
    (tmp_path / "there").write_text("mine")
    for number, path, code in (
        (waiting, "new", "run_not_done"),
        (run_id + 1, "new", "run_not_done"),
        (99, "new", "run_not_found"),
        (run_id, "there", "cannot_write"),
        (run_id, "there/below", "cannot_write"),
    ):
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(UserError) as caught:
            store.pack(number, tmp_path / path)
        assert caught.value.code == code
        assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "there").read_text() == "mine"


def test_a_damaged_artifact_is_not_packed(tmp_path: Path) -> None:
    store = Store(tmp_path / "upq.db")
    run_id = finished(store)
    raw = sqlite3.connect(tmp_path / "upq.db", isolation_level=None)
    raw.execute("UPDATE parts SET data = zeroblob(length(data)) WHERE length(data) = 200")
    raw.close()
    with pytest.raises(UserError) as caught:
        store.pack(run_id, tmp_path / "run.upq")
    store.close()
    assert caught.value.code == "artifact_damaged"
    assert not (tmp_path / "run.upq").exists()


def test_a_full_disk_leaves_no_file_and_no_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = finished(store, torch.arange(20_000))
    path = tmp_path / "packed" / "run.upq"
    monkeypatch.setattr(packed_file, "_make_tables", full_after_making_tables)
    with pytest.raises(UserError, match="full") as caught:
        store.pack(run_id, path)
    assert caught.value.code == "cannot_write"
    assert list(path.parent.iterdir()) == []
    monkeypatch.undo()
    store.pack(run_id, path)
    other = Store(tmp_path / "small.db")
    with other._connections.read() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
    assert refused(other, path).code == "disk_full"
    other.close()


def full_after_making_tables(db: Any, version: int) -> None:
    for script in tables.MIGRATIONS[:version]:
        db.executescript(script)
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 2}")


def test_a_file_of_an_older_version_is_brought_up_to_date_and_not_touched(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = len(tables.MIGRATIONS)
    run_id = finished(store)
    store.pack(run_id, tmp_path / "old.upq")
    content = (tmp_path / "old.upq").read_bytes()
    script = "CREATE TABLE later (x INTEGER) STRICT;"
    for module in (connections, packed_file):
        monkeypatch.setattr(module, "MIGRATIONS", (*tables.MIGRATIONS, script))
    (tmp_path / "new").mkdir()
    newer = Store(tmp_path / "new" / "upq.db")
    moved = newer.unpack(tmp_path / "old.upq")
    assert (moved.precisions, moved.checks) == (["INT4", "INT2"], 1)
    assert torch.equal(newer.load_artifact(moved.run_id, "INT2").tensors["w"], LARGE[:50] + 1)
    assert all(name.startswith("upq.db") for name in os.listdir(tmp_path / "new"))
    assert (tmp_path / "old.upq").read_bytes() == content
    newer.pack(moved.run_id, tmp_path / "new.upq")
    newer.close()
    monkeypatch.undo()
    error = refused(store, tmp_path / "new.upq")
    assert error.code == "newer_database"
    assert f"version {old + 1}; this program knows up to {old}" in error.message
