"""Runs survive their workers: real processes are stopped, killed, starved and told to leave."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import worker_process

from upq.config import RunConfig
from upq.errors import UserError
from upq.jobs import (
    WorkerContext,
    checkpoint_dir,
    data_dir,
    describe_failure,
    execute,
    open_store,
    sweep_checkpoints,
)
from upq.store import Store
from upq.supervisor import Supervisor, exit_note
from upq.worker import lock_holder, worker_name

#: Processes are forked from one that has imported torch and the rest once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["worker_process"])

Spawn = Callable[..., ForkServerProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data with a space and ü"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    folder.mkdir()
    opened = open_store(folder)
    yield opened
    assert opened.doctor() == []
    opened.close()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a function in a process; what is still alive at the end of the test is killed."""
    started: list[ForkServerProcess] = []

    def start(function: Callable[..., None], *arguments: Any, **options: Any) -> ForkServerProcess:
        process = PROCESSES.Process(target=function, args=arguments, kwargs=options)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def supervise(store: Store, folder: Path) -> Iterator[Callable[[], Supervisor]]:
    """Starts a Supervisor over test workers, impatient with cancels; stops it after the test."""
    started: list[Supervisor] = []

    def start() -> Supervisor:
        command = worker_process.worker_command(folder)
        supervisor = Supervisor(
            store, folder, command=command, terminate_after_s=0.5, kill_after_s=1.0
        )
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def exit_code(process: ForkServerProcess, timeout_s: float = 60.0) -> int | None:
    process.join(timeout_s)
    return process.exitcode


def enqueue(store: Store, behaviour: str) -> int:
    return store.enqueue(RunConfig(), name=behaviour)


def wait_for(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def wait_for_state(store: Store, run_id: int, state: str) -> None:
    wait_for(lambda: store.run(run_id).state == state)


def wait_for_step(store: Store, run_id: int, step: int) -> None:
    wait_for(lambda: store.run(run_id).stage_step >= step)


def log_text(store: Store, run_id: int) -> str:
    return "\n".join(line for _, line in store.log_lines(run_id))


# Many workers, lost workers


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
    os.kill(worker.pid or 0, signal.SIGSTOP)
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
    assert store.reconcile(lambda *_: False, {name: exit_note(-9)}) == [run_id]
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


# What an engine's end means


def run_here(store: Store, folder: Path, engine: Callable[[WorkerContext], None]) -> int:
    run_id = enqueue(store, "here")
    run = store.claim("here", os.getpid(), 30.0)
    assert run is not None
    execute(WorkerContext(store, run, folder, threading.Event()), engine)
    return run_id


def test_what_the_engine_reports_is_stored_by_the_end(store: Store, folder: Path) -> None:
    def engine(context: WorkerContext) -> None:
        context.stage("int2", 4)
        for step in (1, 2):
            context.progress(step, tokens_per_s=12.5, detail=f"step {step}")
            context.metric("jsd", step, 0.5)
            context.log(f"did {step}")
            time.sleep(0.01)
        assert context.cached_answers("key") == {}
        context.save_answers("key", {"a": [1]})

    run_id = run_here(store, folder, engine)
    run = store.run(run_id)
    assert (run.state, run.stage_step, run.detail) == ("done", 2, "step 2")
    assert run.peak_bytes is not None
    assert run.peak_bytes > 50 * 2**20
    assert [line for _, line in store.log_lines(run_id)] == ["did 1", "did 2"]
    assert len(store.metrics(run_id)) == 2
    assert store.cached_answers("key") == {"a": [1]}


def test_the_time_left_follows_from_the_steps_done_since_the_stage_began(
    store: Store, folder: Path
) -> None:
    seen = []

    def engine(context: WorkerContext) -> None:
        context.stage("int2", 104)
        for step in (50, 52, 54):  # resumed at 50
            context.progress(step)
            context.flush()
            seen.append(store.run(context.run.id).eta_s)
            time.sleep(0.2)

    run_here(store, folder, engine)
    assert seen[0] is None
    assert 5.0 < seen[2] < 8.0  # 50 steps left at ten a second and some overhead


def test_writes_are_gathered_and_not_one_by_one(store: Store, folder: Path) -> None:
    def engine(context: WorkerContext) -> None:
        context.flush()
        before = store.latest_revision()
        for step in range(500):
            context.metric("jsd", step, 1.0)
        assert store.latest_revision() - before <= 2

    run_id = run_here(store, folder, engine)
    assert store.run(run_id).state == "done"
    assert len(store.metrics(run_id)) == 500


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("bad_dataset", "No rows.", "Add some."), "bad_dataset"),
        (FloatingPointError("jsd is nan at step 3"), "diverged"),
        (MemoryError(), "out_of_memory"),
        (KeyError("x"), "internal_error"),
    ],
)
def test_an_engine_that_raises_fails_its_run_with_a_sentence(
    store: Store, folder: Path, error: Exception, code: str
) -> None:
    def engine(context: WorkerContext) -> None:
        context.log("before")
        raise error

    run = store.run(run_here(store, folder, engine))
    assert (run.state, run.error_code) == ("failed", code)
    assert run.error_message.endswith(".")
    assert "Traceback" not in run.error_message
    assert run.error_hint
    log = log_text(store, run.id)
    assert log.startswith("before\nTraceback (most recent call last)")
    assert type(error).__name__ in log


def test_a_metric_that_is_not_finite_ends_the_run_as_diverged(store: Store, folder: Path) -> None:
    run_id = run_here(store, folder, lambda context: context.metric("jsd", 7, float("nan")))
    assert store.run(run_id).error_message == "The training diverged: jsd is nan at step 7."
    assert store.metrics(run_id) == []


def test_a_full_disk_fails_the_run_and_the_database_stays_sound(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "disk full")
    assert exit_code(spawn(worker_process.worker, folder, 30)) == 0
    run = store.run(run_id)
    assert (run.state, run.error_code) == ("failed", "disk_full")
    assert store.artifacts() == []


def test_too_large_a_tensor_fails_the_run_as_out_of_memory(
    store: Store, folder: Path, spawn: Spawn
) -> None:
    run_id = enqueue(store, "out of memory")
    assert exit_code(spawn(worker_process.worker, folder, 30)) == 0
    run = store.run(run_id)
    assert (run.state, run.error_code) == ("failed", "out_of_memory")
    assert "int2.distill.batch_tokens" in run.error_hint


DISK_FULL = """
import resource, sys, torch
from safetensors.torch import save_file
from upq.jobs import describe_failure
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
data = torch.zeros(100_000)
for write in (
    lambda: open(sys.argv[1] + "/plain", "wb").write(bytes(100_000)),
    lambda: save_file({"w": data}, sys.argv[1] + "/w.safetensors"),
    lambda: torch.save(data, sys.argv[1] + "/w.pt"),
):
    try:
        write()
        print("nothing raised")
    except Exception as error:
        print(type(error).__name__, describe_failure(error).code)
"""


def test_a_full_disk_is_recognised_in_all_its_shapes(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        cwd=worker_process.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        "OSError disk_full",
        "SafetensorError disk_full",
        "RuntimeError disk_full",
    ], result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError(errno.ENOENT, "No such file"), "internal_error"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory:"
                " you tried to allocate 68719476736 bytes."
            ),
            "out_of_memory",
        ),
        (RuntimeError("shape mismatch"), "internal_error"),
    ],
)
def test_errors_of_the_system_get_their_own_codes(error: Exception, code: str) -> None:
    assert describe_failure(error).code == code


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


# The data folder


def test_the_data_folder_is_the_option_then_the_variable_then_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPQ_HOME", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir(str(tmp_path / "option")) == tmp_path / "option"
    assert data_dir() == tmp_path / "variable"
    monkeypatch.delenv("UPQ_HOME")
    chosen = data_dir()
    assert chosen.name == "upq-studio"
    assert chosen.is_dir()
    assert chosen.is_relative_to(tmp_path)


def test_a_data_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        data_dir(str(tmp_path / "file" / "inside"))
    assert caught.value.code == "not_writable"


def test_checkpoints_of_done_and_deleted_runs_are_swept(store: Store, folder: Path) -> None:
    done, deleted = (run_here(store, folder, lambda _: None) for _ in range(2))
    live = enqueue(store, "queued")
    for run_id in (done, deleted, live):
        (checkpoint_dir(folder, run_id) / ".staging-x").mkdir(parents=True)
    (checkpoint_dir(folder, live) / "kept").touch()
    store.delete(deleted)
    sweep_checkpoints(store, folder)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"run-{live}"]
    assert [path.name for path in checkpoint_dir(folder, live).iterdir()] == ["kept"]
