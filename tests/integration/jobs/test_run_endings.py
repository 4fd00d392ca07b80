"""What the end of an engine means for its run: done, failed with a sentence, out of memory or disk; the data folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import worker_process

from tests.support.job_cases import Spawn, enqueue, exit_code, log_text
from upq.errors import UserError
from upq.jobs.failures import describe_failure
from upq.jobs.worker_context import WorkerContext, execute, sweep_checkpoints
from upq.store import Store, checkpoint_dir, data_dir


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
from upq.jobs.failures import describe_failure
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
