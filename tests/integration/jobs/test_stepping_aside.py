"""A worker steps aside for a check and the next ones do the check and then the rest of the run."""

from __future__ import annotations

from pathlib import Path

import worker_process

from tests.support.job_cases import Spawn, enqueue, exit_code, log_text, wait_for_step
from tests.support.store_cases import a_check
from upq.store import Store


def test_a_worker_leaves_for_a_check_and_no_step_is_lost(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id, other = enqueue(store, "steps"), enqueue(store, "quick")
    first = spawn(worker_process.worker, folder, 1)
    wait_for_step(store, run_id, 2)
    check_id = store.enqueue_check(a_check(None), name="quick")
    assert exit_code(first) == 0
    run = store.run(run_id)
    assert (run.state, run.crashes, run.aside_for) == ("interrupted", 0, check_id)
    reached = run.stage_step
    assert reached < worker_process.STEPS

    assert exit_code(spawn(worker_process.worker, folder, 1)) == 0
    assert store.run(check_id).state == "done", "the check went before the run, which is older"
    waited = store.run(run_id)
    assert (waited.state, waited.worked_s) == ("queued", run.worked_s)

    assert exit_code(spawn(worker_process.worker, folder, 1)) == 0
    run = store.run(run_id)
    assert (run.state, run.attempt, run.crashes, run.aside_for) == ("done", 2, 0, None)
    assert [point["step"] for point in store.metrics(run_id)] == list(range(worker_process.STEPS))
    assert f"Steps aside for check #{check_id}" in log_text(store, run_id)
    assert store.run(other).state == "queued"
    store.request_cancel(other)
