"""The queue, the fence around a worker's writes, migrations, and what runs report."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upq import store_schema
from upq.artifact import Artifact
from upq.config import RunConfig
from upq.errors import UserError
from upq.files import clean_text
from upq.presets import preset
from upq.store import Lease, LostLease, Run, Store

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)


class Clock:
    """A wall clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "upq.db", clock=clock)
    yield opened
    assert opened.doctor() == [] or opened.live_run() is not None
    opened.close()


def claimed(store: Store, worker: str = "w1", lease_s: float = 30.0) -> Run:
    run = store.claim(worker, 4711, lease_s)
    assert run is not None
    return run


def small_artifact() -> Artifact:
    return Artifact("INT4", {"bits_per_weight": 4.25}, {"w": torch.arange(6)}, {"a.json": b"{}"})


WRITES: dict[str, Callable[[Lease], Any]] = {
    "renew": lambda lease: lease.renew(30.0),
    "stage": lambda lease: lease.stage("int4", 5),
    "progress": lambda lease: lease.progress(1, 2.0, 3.0, 4, "block 1"),
    "metrics": lambda lease: lease.metrics([("jsd", 1, 0.5, 0.0)]),
    "environment": lambda lease: lease.environment({"commit": "abc"}),
    "log": lambda lease: lease.log([(1.0, "line")]),
    "save_artifact": lambda lease: lease.save_artifact(small_artifact()),
    "save_measurements": lambda lease: lease.save_measurements(
        [{"label": "a", "precision": "INT4"}]
    ),
    "save_check_result": lambda lease: lease.save_check_result("INT4", 0, {"key": "1"}),
    "finish": lambda lease: lease.finish("done"),
}


def contents(store: Store, run_id: int) -> tuple[Any, ...]:
    return (
        store.run(run_id),
        store.metrics(run_id),
        store.log_lines(run_id),
        store.artifacts(run_id),
        store.measurements(run_id),
        store.check_results(run_id),
    )


# The queue


def test_a_new_run_says_what_it_was_asked_for(store: Store) -> None:
    run = store.run(store.enqueue(preset("smoke"), name="first"))
    assert (run.kind, run.state, run.name, run.model) == ("quantize", "queued", "first", "bundled")
    assert (run.method, run.preset, run.attempt, run.cancel_requested) == (
        "rotated_upq",
        "smoke",
        0,
        False,
    )
    assert RunConfig(**{"seed": run.config["seed"]}) == RunConfig()
    assert run.config["int2"]["distill"]["beta"] == 0.5


def test_runs_start_in_the_order_they_were_queued(store: Store) -> None:
    ids = [store.enqueue(RunConfig()) for _ in range(3)]
    assert [store.queue_position(i) for i in ids] == [1, 2, 3]
    assert claimed(store).id == ids[0]
    assert [store.queue_position(i) for i in ids] == [0, 1, 2]
    assert [run.id for run in store.runs()] == ids[::-1]
    live = store.live_run()
    assert live is not None
    assert live.id == ids[0]


def test_an_empty_queue_gives_nothing(store: Store) -> None:
    before = store.latest_revision()
    assert store.claim("w1", 1, 30.0) is None
    assert store.latest_revision() == before


def test_an_unknown_run_is_a_user_error(store: Store) -> None:
    for ask in (store.run, store.request_cancel, store.resume, store.delete):
        with pytest.raises(UserError) as caught:
            ask(99)
        assert caught.value.code == "run_not_found"
    with pytest.raises(UserError, match="no run 99"):
        store.enqueue_check({"model": "bundled"}, 99)


def test_checks_stand_in_the_same_queue_and_know_their_run(store: Store) -> None:
    parent = store.enqueue(RunConfig())
    check = store.run(store.enqueue_check({"model": "bundled", "limit": 3}, parent, "check"))
    assert (check.kind, check.parent_id, check.config["limit"]) == ("check", parent, 3)
    assert [run.id for run in store.runs(kind="check")] == [check.id]
    assert store.queue_position(check.id) == 2


def test_a_claim_is_seen_by_others_at_once_and_leaves_no_lock(store: Store, tmp_path: Path) -> None:
    store.enqueue(RunConfig())
    claimed(store)
    other = sqlite3.connect(tmp_path / "upq.db", timeout=0, isolation_level=None)
    assert other.execute("SELECT state, worker FROM runs").fetchall() == [("running", "w1")]
    other.execute("BEGIN IMMEDIATE")
    other.execute("ROLLBACK")
    other.close()


# Cancel, resume, delete


def test_cancelling_a_queued_run_ends_it_now(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    assert "is cancelled" in store.request_cancel(run_id)
    assert store.run(run_id).state == "cancelled"
    assert store.claim("w1", 1, 30.0) is None
    assert "already cancelled" in store.request_cancel(run_id)


def test_cancelling_a_running_run_raises_its_flag_once(store: Store) -> None:
    run = store.run(store.enqueue(RunConfig()))
    lease = store.lease(claimed(store))
    assert lease.renew(30.0) is False
    assert "stops at its next safe point" in store.request_cancel(run.id)
    assert "already stopping" in store.request_cancel(run.id)
    assert lease.renew(30.0) is True
    lease.finish("cancelled")
    assert store.run(run.id).state == "cancelled"


@pytest.mark.parametrize("state", ["done", "failed"])
def test_cancelling_an_ended_run_changes_nothing(store: Store, state: str) -> None:
    run_id = store.enqueue(RunConfig())
    store.lease(claimed(store)).finish(state)
    before = store.run(run_id)
    assert f"already {state}" in store.request_cancel(run_id)
    assert store.run(run_id) == before


def test_a_worker_that_leaves_while_a_cancel_waits_ends_the_run_cancelled(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    store.request_cancel(run_id)
    lease.finish("interrupted")
    assert store.run(run_id).state == "cancelled"


@pytest.mark.parametrize("state", ["failed", "cancelled", "interrupted"])
def test_an_ended_run_resumes_with_a_clean_slate(store: Store, state: str) -> None:
    run_id = store.enqueue(RunConfig())
    store.lease(claimed(store)).finish(state, "code", "message", "hint", "Traceback:\n  line")
    assert (store.run(run_id).error_code, store.run(run_id).error_hint) == ("code", "hint")
    assert [line for _, line in store.log_lines(run_id)] == ["Traceback:", "  line"]
    assert "queued again" in store.resume(run_id)
    run = store.run(run_id)
    assert (run.state, run.crashes, run.error_message, run.ended_at) == ("queued", 0, "", None)
    assert claimed(store).attempt == 2


def test_done_and_live_runs_do_not_resume(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    assert "is queued" in store.resume(run_id)
    lease = store.lease(claimed(store))
    assert "is running" in store.resume(run_id)
    lease.finish("done")
    assert "is done" in store.resume(run_id)
    assert store.run(run_id).state == "done"


def test_only_ended_runs_are_deleted_and_nothing_of_them_stays(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    with pytest.raises(UserError, match="is queued"):
        store.delete(run_id)
    lease = store.lease(claimed(store))
    for name in ("metrics", "log", "save_artifact", "save_measurements", "save_check_result"):
        WRITES[name](lease)
    with pytest.raises(UserError) as caught:
        store.delete(run_id)
    assert caught.value.code == "run_is_running"
    lease.finish("done")
    check = store.enqueue_check({"model": "bundled"}, run_id)
    with pytest.raises(UserError, match=f"Run {check} is queued"):
        store.delete(run_id)
    store.request_cancel(check)
    revision = store.latest_revision()
    store.delete(run_id)
    assert store.runs() == []
    assert store.metrics(run_id) == store.artifacts() == store.measurements() == []
    assert store.latest_revision() > revision
    assert store.enqueue(RunConfig()) > check, "ids are not reused"


# Leases


@pytest.mark.parametrize("name", WRITES)
def test_a_worker_that_lost_its_run_writes_nothing(store: Store, clock: Clock, name: str) -> None:
    run_id = store.enqueue(RunConfig())
    stale = store.lease(claimed(store, "w1", 30.0))
    clock.now += 31
    store.reconcile()
    store.requeue_interrupted()
    claimed(store, "w1", 30.0)  # even under the same name: the attempt differs
    before = contents(store, run_id)
    with pytest.raises(LostLease):
        WRITES[name](stale)
    assert contents(store, run_id) == before


@pytest.mark.parametrize("name", sorted(WRITES.keys() - {"renew"}))
def test_every_write_counts_as_a_change_and_as_a_sign_of_life(
    store: Store, clock: Clock, name: str
) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store, lease_s=30.0))
    revision = store.latest_revision()
    clock.now += 20
    WRITES[name](lease)
    assert store.run(run_id).revision == store.latest_revision() > revision
    assert store.run(run_id).lease_until == (None if name == "finish" else clock.now + 30)


def test_renewing_extends_the_lease_without_counting_as_a_change(
    store: Store, clock: Clock
) -> None:
    store.enqueue(RunConfig())
    lease = store.lease(claimed(store, lease_s=30.0))
    revision = store.latest_revision()
    for _ in range(10):
        clock.now += 25
        lease.renew(30.0)
        assert store.reconcile() == []
    assert store.latest_revision() == revision


def test_three_crashes_fail_a_run_and_the_queue_goes_on(store: Store, clock: Clock) -> None:
    poison, next_run = store.enqueue(RunConfig()), store.enqueue(RunConfig())
    for crash in (1, 2, 3):
        lease = store.lease(claimed(store, f"w{crash}"))
        lease.stage("int2", 10)
        assert store.reconcile(lambda *_: False, {f"w{crash}": "killed by signal 9"}) == [poison]
        run = store.run(poison)
        assert run.state == ("failed" if crash == 3 else "interrupted")
        assert run.error_message == f"Crash {crash} of 3 in stage int2: killed by signal 9."
        assert store.log_lines(poison)[-1] == (clock.now, run.error_message)
        assert store.requeue_interrupted() == ([] if crash == 3 else [poison])
    assert store.run(poison).error_code == "worker_crashed"
    assert claimed(store).id == next_run


def test_only_dead_or_silent_workers_lose_their_runs(store: Store, clock: Clock) -> None:
    for worker in ("alive", "dead", "silent"):
        store.enqueue(RunConfig())
        claimed(store, worker, 10.0 if worker == "silent" else 30.0)
    clock.now += 11
    assert store.reconcile(lambda worker, pid: worker != "dead" and pid == 4711) == [2, 3]
    assert store.run(1).state == "running"


def test_a_crash_during_a_cancel_ends_cancelled(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    claimed(store)
    store.request_cancel(run_id)
    store.reconcile(lambda *_: False)
    assert (store.run(run_id).state, store.run(run_id).crashes) == ("cancelled", 0)


def test_stages_remember_when_they_began_and_ended(store: Store, clock: Clock) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    start = clock.now
    lease.stage("load", 1)
    clock.now += 5
    lease.stage("data", 7)
    lease.progress(3, 10.0, 4.0, 1000, "prompt 3")
    lease.progress(4, 11.0, 3.0, 900, "prompt 4")
    clock.now += 5
    run = store.run(run_id)
    assert (run.stage, run.stage_step, run.stage_total, run.detail) == ("data", 4, 7, "prompt 4")
    assert (run.tokens_per_s, run.eta_s, run.peak_bytes) == (11.0, 3.0, 1000)
    lease.finish("done")
    stages = store.run(run_id).stages
    assert [stages[name]["started"] for name in ("load", "data")] == [start, start + 5]
    assert [stages[name]["ended"] for name in ("load", "data")] == [start + 5, start + 10]
    assert [stages[name]["seconds"] for name in ("load", "data")] == [5, 5]


# What runs report


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(store: Store, value: float) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    with pytest.raises(ValueError, match=r"jsd is .* at step 2; expected a finite number"):
        lease.metrics([("jsd", 1, 0.5, 0.0), ("jsd", 2, value, 0.0)])
    with pytest.raises(ValueError, match="kl of INT4"):
        lease.save_measurements([{"label": "INT4", "precision": "INT4", "kl": value}])
    assert store.metrics(run_id) == store.measurements(run_id) == []


def test_a_metric_point_written_twice_keeps_the_second_value(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    lease.metrics([("jsd", 2, 0.5, 0.0), ("jsd", 1, 0.7, 0.0), ("kl", 1, 3, 0.0)])
    lease.metrics([("jsd", 2, 0.4, 0.0)])
    assert [tuple(point.values())[:3] for point in store.metrics(run_id)] == [
        ("jsd", 1, 0.7),
        ("jsd", 2, 0.4),
        ("kl", 1, 3.0),
    ]


def test_worked_time_counts_no_pause_and_no_jump_of_the_clock(store: Store, clock: Clock) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store, lease_s=30.0))
    clock.now += 12
    lease.renew(30.0)
    clock.now += 8
    lease.metrics([("jsd", 1, 0.5, 3.0)])
    lease.finish("interrupted")
    clock.now += 50_000
    store.requeue_interrupted()
    lease = store.lease(claimed(store, lease_s=30.0))
    clock.now += 5
    lease.metrics([("jsd", 2, 0.4, 0.0)])
    clock.now += 50_000  # the clock was set
    lease.metrics([("jsd", 3, 0.3, 0.0)])
    clock.now -= 200
    lease.finish("done")
    assert [point["at_s"] for point in store.metrics(run_id)] == [17.0, 25.0, 55.0]
    assert store.run(run_id).worked_s == 55.0


def test_the_time_of_a_killed_worker_counts_up_to_its_last_sign_of_life(
    store: Store, clock: Clock
) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store, lease_s=30.0))
    lease.stage("int2", 3)
    clock.now += 10
    lease.progress(1, None, None, None, "")
    clock.now += 1000
    store.reconcile()
    store.requeue_interrupted()
    lease = store.lease(claimed(store, lease_s=30.0))
    lease.stage("load", 1)
    clock.now += 4
    lease.stage("int2", 3)
    clock.now += 6
    lease.finish("done")
    run = store.run(run_id)
    assert run.worked_s == 20.0
    assert {name: one["seconds"] for name, one in run.stages.items()} == {"int2": 16.0, "load": 4.0}


def test_a_run_remembers_every_place_that_it_was_executed_in_once(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    for commit in ("a", "a", "b", "a"):
        lease.environment({"commit": commit})
    assert store.run(run_id).environments == [{"commit": "a"}, {"commit": "b"}]


def test_measurements_keep_unknown_keys_as_extra(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    lease.save_measurements([{"label": "RTN INT2", "precision": "INT2", "kl": 1.5, "layers": 30}])
    lease.save_measurements([{"label": "RTN INT2", "precision": "INT2", "kl": 1.25, "note": "x"}])
    (row,) = store.measurements()
    assert (row["run_id"], row["label"], row["kl"], row["ppl"]) == (run_id, "RTN INT2", 1.25, None)
    assert row["extra"] == {"note": "x"}


def test_check_results_answers_and_notes_come_back(store: Store) -> None:
    run_id = store.enqueue_check({"model": "bundled"}, None)
    lease = store.lease(claimed(store))
    lease.save_check_result("INT4", 1, {"response": "ü\ud800"})
    lease.save_check_result("INT4", 0, {"response": ""})
    assert [row["position"] for row in store.check_results(run_id)] == [0, 1]
    assert store.check_results(run_id)[1]["result"] == {"response": "ü\ud800"}
    store.save_answers("key", {"a": [1, 2], "b": []})
    store.save_answers("key", {"a": [9], "c": [3]})
    assert store.cached_answers("key") == {"a": [1, 2], "b": [], "c": [3]}
    assert store.cached_answers("other") == {}
    assert store.note("speed") is None
    store.set_note("speed", {"tokens_per_s": 12.5})
    store.set_note("speed", {"tokens_per_s": 13.5})
    assert store.note("speed") == {"tokens_per_s": 13.5}


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(name=ANY_TEXT, lines=st.lists(ANY_TEXT, max_size=4), detail=ANY_TEXT)
def test_any_text_comes_back_clean(store: Store, name: str, lines: list[str], detail: str) -> None:
    run_id = store.enqueue(RunConfig(), name=name)
    lease = store.lease(claimed(store))
    lease.log([(1.0, line) for line in lines])
    lease.progress(0, None, None, None, detail)
    lease.finish("failed", "code", name, detail)
    run = store.run(run_id)
    assert (run.name, run.detail) == (clean_text(name), clean_text(detail))
    assert (run.error_message, run.error_hint) == (run.name, run.detail)
    assert [line for _, line in store.log_lines(run_id)] == [clean_text(line) for line in lines]


def test_the_log_gives_its_last_lines(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    store.lease(claimed(store)).log((float(i), f"line {i}") for i in range(10))
    assert store.log_lines(run_id, limit=2) == [(8.0, "line 8"), (9.0, "line 9")]


def test_threads_that_read_and_then_write_wait_for_each_other(store: Store) -> None:
    def cancel_and_resume(run_id: int) -> None:
        for _ in range(10):
            store.request_cancel(run_id)
            store.resume(run_id)
        store.set_note(str(run_id), "did all")

    ids = [store.enqueue(RunConfig()) for _ in range(6)]
    threads = [threading.Thread(target=cancel_and_resume, args=[run_id]) for run_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.note(str(run_id)) for run_id in ids] == ["did all"] * 6


# The database itself


def test_a_busy_database_is_reported_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_schema, "BUSY_TIMEOUT_S", 0.05)
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
        assert raw.execute("PRAGMA user_version").fetchone() == (len(store_schema.MIGRATIONS),)
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    raw.close()


def test_a_migration_keeps_rows_and_one_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upq.db"
    first = Store(path)
    first.enqueue(RunConfig(), name="kept")
    first.close()
    released = store_schema.MIGRATIONS
    added = "CREATE TABLE later (x INTEGER) STRICT;"
    monkeypatch.setattr(store_schema, "MIGRATIONS", (*released, added + "CREATE TABLE nonsense;"))
    with pytest.raises(sqlite3.OperationalError):
        Store(path)
    monkeypatch.setattr(store_schema, "MIGRATIONS", (*released, added))
    second = Store(path)
    assert second.run(1).name == "kept"
    assert second.doctor() == []
    second.close()


def test_a_run_of_the_first_schema_keeps_its_time_and_its_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upq.db"
    with monkeypatch.context() as first:
        first.setattr(store_schema, "MIGRATIONS", store_schema.MIGRATIONS[:1])
        Store(path).close()
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute(
        "INSERT INTO runs (kind, state, name, model, method, preset, config, created_at,"
        " started_at, ended_at, stage, stages) VALUES ('quantize', 'done', '', 'm', 'upq', 'quick',"
        """ '{}', 1, 2, 9, 'warm', '{"warm": {"total": 1}, "int2": {"total": 2}}')"""
    )
    raw.execute("INSERT INTO metrics VALUES (1, 'jsd', 3, 0.5)")
    raw.close()
    store = Store(path)
    run = store.run(1)
    assert (run.worked_s, run.environments) == (7.0, [])
    assert run.stages == {"int2": {"total": 1}, "int2_distill": {"total": 2}}
    assert run.stage == "int2"
    assert store.metrics(1) == [{"series": "jsd", "step": 3, "value": 0.5, "at_s": None}]
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
    db = store_schema.connect(tmp_path / "upq.db")
    pragmas = ("journal_mode", "synchronous", "foreign_keys")
    found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert found == (["wal", 1, 1] if safe else ["truncate", 2, 1])
    db.close()
