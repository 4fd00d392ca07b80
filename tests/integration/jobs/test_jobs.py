"""Runs survive their workers: real processes are stopped, killed, starved and told to leave."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import worker_process

from tests.support.job_cases import (
    PROCESSES,
    Spawn,
    enqueue,
    exit_code,
    log_text,
    wait_for,
    wait_for_state,
    wait_for_step,
)
from upq.errors import UserError
from upq.jobs import Supervisor
from upq.jobs.failures import lost_worker, stopped_worker
from upq.jobs.worker import PARENT, lock_holder, worker_name
from upq.store import Store, checkpoint_dir

# Many workers, lost workers


def stop_between_writes(store: Store, pid: int) -> None:
    """SIGSTOP a worker while it does not hold the lock of the database."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            store.set_note("writable", True)
            return
        except UserError:
            os.kill(pid, signal.SIGCONT)


def test_four_processes_claim_three_hundred_runs_each_exactly_once(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    ids = [enqueue(store, "quick") for _ in range(300)]
    start = PROCESSES.Barrier(4)
    outputs = [folder / f"worker {i}" for i in range(4)]
    processes = [spawn(worker_process.claim_all, folder, output, start) for output in outputs]
    assert [exit_code(process) for process in processes] == [0] * 4
    claims = [list(map(int, output.read_text().split())) for output in outputs]
    assert sorted(itertools.chain(*claims)) == ids
    assert {run.attempt for run in store.runs(limit=300)} == {1}
    assert sum(map(bool, claims)) > 1, "one process did not do it all"
    store.reconcile(lambda *_: False)


@pytest.mark.chaos
def test_a_stopped_worker_that_lost_its_run_writes_nothing_when_it_goes_on(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "steps")
    worker = spawn(worker_process.worker, folder, 1)
    wait_for_step(store, run_id, 2)
    stop_between_writes(store, worker.pid or 0)
    wait_for(lambda: store.reconcile() == [run_id])
    assert store.run(run_id).state == "interrupted"
    store.requeue_interrupted()
    run = store.claim("somebody else", os.getpid(), 60.0)
    assert run is not None
    before = (store.run(run_id), store.metrics(run_id), store.log_lines(run_id))
    os.kill(worker.pid or 0, signal.SIGCONT)
    assert exit_code(worker) == 0
    assert (store.run(run_id), store.metrics(run_id), store.log_lines(run_id)) == before
    store.lease(run).finish("done")


@pytest.mark.chaos
def test_a_killed_worker_leaves_a_run_that_the_next_one_resumes(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "steps")
    worker = spawn(worker_process.worker, folder, 30)
    wait_for_step(store, run_id, 5)
    name = store.run(run_id).worker or ""
    assert name == worker_name("cpu", worker.pid or 0)
    assert lock_holder(folder, "cpu") == worker.pid
    worker.kill()
    assert exit_code(worker) == -signal.SIGKILL
    assert lock_holder(folder, "cpu") is None
    assert store.reconcile(lambda *_: False, {name: lost_worker(-9)}) == [run_id]
    run = store.run(run_id)
    assert (run.state, run.error_code, run.crashes) == ("interrupted", "worker_crashed", 1)
    assert "killed by signal 9 (the system may have run out of memory)" in run.error_message
    step = int((checkpoint_dir(folder, run_id) / "step").read_bytes())
    assert exit_code(spawn(worker_process.worker, folder, 30)) == 0
    run = store.run(run_id)
    assert (run.state, run.attempt, run.error_message) == ("done", 2, "")
    assert step >= 5
    assert [point["step"] for point in store.metrics(run_id)] == list(range(worker_process.STEPS))
    assert not checkpoint_dir(folder, run_id).exists()


@pytest.mark.chaos
def test_three_kills_fail_the_run_and_the_queue_goes_on(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    poison, healthy = enqueue(store, "crash"), enqueue(store, "quick")
    supervise()
    wait_for_state(store, healthy, "done")
    run = store.run(poison)
    assert (run.state, run.error_code, run.attempt, run.crashes) == (
        "failed",
        "worker_crashed",
        3,
        3,
    )
    assert "Crash 3 of 3 in stage int2: the worker process was killed by signal 9" in (
        run.error_message
    )


@pytest.mark.chaos
def test_a_worker_stopped_with_the_lock_of_the_database_holds_nobody_up(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    run_id = enqueue(store, "locks")
    supervise()
    wait_for_state(store, run_id, "done")
    ending = "the worker process was stopped by signal 19 (SIGSTOP)"
    assert ending in log_text(store, run_id)
    assert store.run(run_id).crashes == 1


@pytest.mark.chaos
def test_a_stopped_worker_is_named_with_its_signal_and_its_run_goes_on(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    run_id = enqueue(store, "steps")
    supervisor = supervise()
    wait_for_step(store, run_id, 2)
    os.kill(store.run(run_id).pid or 0, signal.SIGSTOP)
    wait_for(lambda: store.run(run_id).crashes == 1)
    ending = "the worker process was stopped by signal 19 (SIGSTOP) and stopped answering"
    wait_for(lambda: ending in log_text(store, run_id))
    wait_for_state(store, run_id, "done")
    assert "memory" not in log_text(store, run_id) + supervisor.status()["last_exit"]
    assert [point["step"] for point in store.metrics(run_id)] == list(range(worker_process.STEPS))


def test_what_is_said_of_a_lost_worker_blames_memory_only_for_signal_9() -> None:
    for returncode, words in [(-11, "signal 11 (SIGSEGV)"), (-63, "signal 63"), (3, "exit code 3")]:
        ending = lost_worker(returncode)
        assert ending.note.endswith(words)
        assert "memory" not in ending.note + ending.hint
    assert "memory" in lost_worker(-9).note
    assert "memory" in lost_worker(-9).hint
    assert stopped_worker(1) is None, "no child of this process"


# Leaving when the work is done


@pytest.mark.chaos
def test_a_worker_that_has_finished_and_does_not_leave_holds_nobody_up(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    first, second = enqueue(store, "lingers"), enqueue(store, "quick")
    supervisor = supervise()
    wait_for_state(store, second, "done")
    run = store.run(first)
    assert (run.state, run.attempt, run.crashes) == ("done", 1, 0)
    assert supervisor.status()["last_exit"] == "", "it is no crash"
    assert supervisor.status()["early_exits"] == 0


LINGERING = """
import sys, threading, time
from upq import jobs
from upq.__main__ import main

def worker_main(*_, **__):
    threading.Thread(target=time.sleep, args=[600]).start()
    print(time.time())

jobs.worker_main = worker_main
main(["--data-dir", sys.argv[1], "worker"])
"""


def test_a_worker_leaves_as_soon_as_its_work_is_done(folder: Path) -> None:
    command = [sys.executable, "-c", LINGERING, str(folder)]
    result = subprocess.run(
        command, cwd=worker_process.ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert time.time() - float(result.stdout) < 1.0, "what was written before is not lost"


# Leaving on request


def test_sigterm_leaves_the_run_interrupted_and_the_exit_code_zero(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "steps")
    worker = spawn(worker_process.worker, folder, 30)
    wait_for_step(store, run_id, 3)
    worker.terminate()
    assert exit_code(worker, 10) == 0
    run = store.run(run_id)
    assert (run.state, run.crashes, run.error_code) == ("interrupted", 0, "")
    assert store.requeue_interrupted() == [run_id]


def test_a_second_sigterm_ends_a_worker_that_does_not_listen(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "deaf")
    worker = spawn(worker_process.worker, folder, 30)
    wait_for(lambda: store.run(run_id).stage == "int2")
    worker.terminate()
    time.sleep(0.3)
    assert worker.is_alive()
    worker.terminate()
    assert exit_code(worker, 5) == 128 + signal.SIGTERM
    store.reconcile(lambda *_: False)


def test_a_stop_that_comes_before_the_loop_is_not_lost(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "steps")
    assert exit_code(spawn(worker_process.worker, folder, 30, stop_early=True)) == 0
    assert (store.run(run_id).state, store.run(run_id).attempt) == ("queued", 0)


def test_a_cancelled_run_stops_soon_and_resumes_where_it_was(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "steps")
    worker = spawn(worker_process.worker, folder, 5)
    wait_for_step(store, run_id, 3)
    store.request_cancel(run_id)
    asked = time.monotonic()
    wait_for_state(store, run_id, "cancelled")
    assert time.monotonic() - asked < 3
    assert exit_code(worker, 10) == 0
    assert int((checkpoint_dir(folder, run_id) / "step").read_bytes()) < worker_process.STEPS


@pytest.mark.chaos
def test_a_worker_that_ignores_a_cancel_is_killed_and_the_run_is_cancelled(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    run_id = enqueue(store, "deaf")
    supervise()
    wait_for(lambda: store.run(run_id).stage == "int2")
    store.request_cancel(run_id)
    wait_for_state(store, run_id, "cancelled")
    assert "killed by signal 9" in log_text(store, run_id)


@pytest.mark.chaos
def test_killing_the_app_leaves_its_worker_finishing_the_run(
    store: Store, folder: Path, spawn: Spawn, supervise: Callable[[], Supervisor]
) -> None:
    first, second = enqueue(store, "steps"), enqueue(store, "quick")
    app = spawn(worker_process.app, folder)
    wait_for_step(store, first, 2)
    app.kill()
    supervise()  # the next app: its worker waits for the lock of the first one
    wait_for_state(store, second, "done")
    run = store.run(first)
    assert (run.state, run.attempt) == ("done", 1)


@pytest.mark.usefixtures("store")
def test_a_worker_whose_app_is_gone_before_it_looks_does_not_wait_for_ever(folder: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {**os.environ, PARENT: str(gone.pid)}
    worker = subprocess.run(worker_process.worker_command(folder), env=environment, timeout=60)
    assert worker.returncode == 0


def test_stopping_the_supervisor_leaves_the_run_resumable(
    store: Store, supervise: Callable[[], Supervisor]
) -> None:
    run_id = enqueue(store, "steps")
    supervisor = supervise()
    wait_for_step(store, run_id, 2)
    assert supervisor.status()["run_id"] == run_id
    supervisor.stop()
    assert store.run(run_id).state == "interrupted"
    assert supervisor.status()["alive"] is False


@pytest.mark.chaos
def test_a_kill_during_a_save_leaves_a_whole_artifact_or_none(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    process = spawn(worker_process.kill_saves, folder, folder / "outcomes")
    assert exit_code(process) == 0
    outcomes = Counter((folder / "outcomes").read_text().splitlines())
    assert sum(outcomes.values()) == 36
    assert outcomes["1 0"] >= 12, f"killed before the commit: {outcomes}"
    assert outcomes["0 1"] >= 1, f"not killed: {outcomes}"
    assert outcomes["0 0"] == 0
