"""What runs report comes back as it was, and only finite and clean."""

from __future__ import annotations

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.store_cases import Clock, a_check, claimed
from upq.config import RunConfig
from upq.files import clean_text
from upq.store import Store

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=50)


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
    lease.progress(1, None, None, "", 0, None)
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


def test_what_the_engine_that_answers_gives_has_columns_of_its_own(store: Store) -> None:
    store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    served = {"served_kl": 0.25, "served_top1": 0.5, "served_ppl": 3.0, "served_by": "native C"}
    lease.save_measurements([{"label": "INT4", "precision": "INT4", "kl": 0.125, **served}])
    lease.save_measurements([{"label": "RTN INT4", "precision": "INT4", "kl": 0.5}])
    first, second = store.measurements()
    assert {name: first[name] for name in served} == served
    assert [second[name] for name in served] == [None] * len(served)
    assert first["extra"] == second["extra"] == {}


def test_check_results_answers_and_notes_come_back(store: Store) -> None:
    run_id = store.enqueue_check(a_check(None))
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
    lease.progress(0, None, None, detail, 0, None)
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
