"""The queue: order, cancel, resume, delete."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.support.store_cases import WRITES, a_check, claimed
from upq.config import RunConfig, preset
from upq.errors import UserError
from upq.store import Store


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


@pytest.mark.parametrize("run_id", [99, 0, -1, 2**63 - 1, 2**63, -(2**70)])
def test_an_unknown_run_is_a_user_error(store: Store, run_id: int) -> None:
    for ask in (store.run, store.request_cancel, store.resume, store.delete):
        with pytest.raises(UserError) as caught:
            ask(run_id)
        assert caught.value.code == "run_not_found"
    with pytest.raises(UserError, match="no run 99"):
        store.enqueue_check(a_check(99))


def test_checks_stand_in_the_same_queue_and_know_their_run(store: Store) -> None:
    parent = store.enqueue(RunConfig())
    check = store.run(store.enqueue_check(a_check(parent, limit=3), name="check"))
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
    assert "was asked to stop at its next safe point" in store.request_cancel(run.id)
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
    check = store.enqueue_check(a_check(run_id))
    with pytest.raises(UserError, match=f"Run {check} is queued"):
        store.delete(run_id)
    store.request_cancel(check)
    revision = store.latest_revision()
    store.delete(run_id)
    assert store.runs() == []
    assert store.metrics(run_id) == store.artifacts() == store.measurements() == []
    assert store.latest_revision() > revision
    assert store.enqueue(RunConfig()) > check, "ids are not reused"
