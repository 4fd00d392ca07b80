"""The fence around a worker's writes: a worker that lost its run changes nothing."""

from __future__ import annotations

import pytest

from tests.support.store_cases import WRITES, Clock, claimed, contents
from upq.config import RunConfig
from upq.store import Ending, LostLease, Store


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
        assert store.reconcile(
            lambda *_: False, {f"w{crash}": Ending("killed by signal 9", "Try again.")}
        ) == [poison]
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
    lease.progress(3, 10.0, 4.0, "prompt 3", 1000, None)
    lease.progress(4, 11.0, 3.0, "prompt 4", 900, 50)
    clock.now += 5
    run = store.run(run_id)
    assert (run.stage, run.stage_step, run.stage_total, run.detail) == ("data", 4, 7, "prompt 4")
    assert (run.tokens_per_s, run.eta_s) == (11.0, 3.0)
    assert (run.peak_bytes, run.gpu_peak_bytes) == (1000, 50)
    lease.progress(5, 11.0, 2.0, "", 950, 40)
    lease.progress(6, 11.0, 1.0, "", 950, None)
    assert store.run(run_id).gpu_peak_bytes == 50
    lease.finish("done")
    stages = store.run(run_id).stages
    assert [stages[name]["started"] for name in ("load", "data")] == [start, start + 5]
    assert [stages[name]["ended"] for name in ("load", "data")] == [start + 5, start + 10]
    assert [stages[name]["seconds"] for name in ("load", "data")] == [5, 5]
