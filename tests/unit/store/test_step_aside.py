"""A quantization at work steps aside for a check: when, for which one, what is next then, and what it counts."""

from __future__ import annotations

from tests.support.store_cases import Clock, a_check, claimed
from upq.config import RunConfig
from upq.store import Run, Store
from upq.store.asides import EVERY_S


def work(store: Store, clock: Clock, run: Run, seconds: float) -> None:
    """Let the worker of a run work and renew its lease, as it does every few seconds."""
    for _ in range(int(seconds / 10)):
        clock.now += 10
        store.lease(run).renew(30.0)


def aside(store: Store, run: Run) -> int | None:
    """Let a run step aside as its worker does; the check that goes first."""
    check = store.lease(run).step_aside()
    if check is not None:
        store.lease(run).finish("interrupted")
        store.requeue_interrupted()
    return check


def done(store: Store, run: Run) -> None:
    store.lease(run).finish("done")


def test_the_check_goes_first_and_the_run_right_behind_it(store: Store) -> None:
    run, other = (store.enqueue(RunConfig()) for _ in range(2))
    first, second = (store.enqueue_check(a_check(None)) for _ in range(2))
    live = claimed(store)
    assert store.lease(live).is_check_waiting()
    assert aside(store, live) == first
    assert [store.queue_position(one) for one in (first, run, other, second)] == [1, 2, 3, 4]
    assert store.run(run).aside_for == first
    check = claimed(store)
    assert check.id == first
    done(store, check)
    back = claimed(store)
    assert (back.id, back.aside_for, back.attempt, back.crashes) == (run, None, 2, 0)


def test_a_flood_of_checks_takes_one_place_in_ten_minutes_of_work(
    store: Store, clock: Clock
) -> None:
    run = store.enqueue(RunConfig())
    checks = [store.enqueue_check(a_check(None)) for _ in range(9)]
    live, served = claimed(store), []
    for _ in range(3):
        assert aside(store, live) == checks[len(served)]
        check = claimed(store)
        served.append(check.id)
        clock.now += 3600  # a long check is no work of the run
        done(store, check)
        live = claimed(store)
        assert live.id == run
        work(store, clock, live, EVERY_S - 10)
        assert not store.lease(live).is_check_waiting()
        assert aside(store, live) is None
        work(store, clock, live, 10)
        assert store.lease(live).is_check_waiting()
    assert served == checks[:3]
    assert store.run(run).worked_s == 3 * EVERY_S, "pauses are not counted"


def test_a_check_of_what_is_still_being_made_waits_for_it(store: Store) -> None:
    run = store.enqueue(RunConfig())
    store.enqueue_check(a_check(run))
    live = claimed(store)
    assert not store.lease(live).is_check_waiting()
    assert aside(store, live) is None
    assert store.run(run).state == "running"
    done(store, live)
    assert claimed(store).kind == "check"


def test_nobody_steps_aside_for_a_quantization_and_no_check_does(store: Store) -> None:
    first = store.enqueue_check(a_check(None))
    for _ in range(2):
        store.enqueue(RunConfig())
    store.enqueue_check(a_check(None))
    check = claimed(store)
    assert check.id == first
    assert aside(store, check) is None
    done(store, check)
    store.request_cancel(4)
    live = claimed(store)
    assert aside(store, live) is None, "the only check was cancelled"


def test_a_check_that_is_cancelled_or_crashes_gives_the_place_back(store: Store) -> None:
    run, older = store.enqueue(RunConfig()), store.enqueue(RunConfig())
    check = store.enqueue_check(a_check(None))
    assert aside(store, claimed(store)) == check
    claimed(store)
    store.reconcile(lambda *_: False)
    store.requeue_interrupted()
    assert [store.queue_position(one) for one in (check, run, older)] == [1, 2, 3]
    store.request_cancel(check)
    back = claimed(store)
    assert (back.id, back.crashes) == (run, 0)


def test_a_run_that_is_cancelled_meanwhile_leaves_nothing_behind(store: Store) -> None:
    run, other = store.enqueue(RunConfig()), store.enqueue(RunConfig())
    check = store.enqueue_check(a_check(None))
    assert aside(store, claimed(store)) == check
    store.request_cancel(run)
    assert [store.queue_position(one) for one in (other, check)] == [1, 2]
    store.resume(run)
    assert store.run(run).aside_for is None
    assert store.queue_position(run) == 1, "by age again"


def test_a_run_knows_of_its_checkpoint_also_while_it_starts_again(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    for blocks, is_kept in ((0, False), (2, True), (0, True)):
        lease = store.lease(claimed(store))
        for stage in ("load", "data"):
            lease.stage(stage, 1)
            assert store.run(run_id).has_checkpoint is (blocks == 0 and is_kept)
        lease.stage("int4", 30)
        lease.progress(blocks, None, None, "", 1, None)
        assert store.run(run_id).has_checkpoint is is_kept
        lease.finish("interrupted")
        store.requeue_interrupted()
        assert store.run(run_id).has_checkpoint is is_kept
