"""What the tests of jobs start as processes of their own; a run's name says what its engine does.

As a script it is a worker: python worker_process.py FOLDER LEASE_S
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from upq.artifact import Artifact
from upq.config import RunConfig
from upq.files import write_bytes_atomic
from upq.jobs import Supervisor, worker_main
from upq.jobs.worker_context import Engine, WorkerContext
from upq.store import Store, open_store

ROOT = Path(__file__).resolve().parents[3]
STEPS = 40
STATEMENTS = 24  # a few more than a save has


def worker(folder: Path, lease_s: float, *, stop_early: bool = False) -> None:
    """A worker with the engine below. stop_early: SIGTERM comes before it looks for a run."""

    def load_engine(_: Store) -> Engine:
        if stop_early:
            os.kill(os.getpid(), signal.SIGTERM)
        return engine

    worker_main(folder, load_engine=load_engine, lease_s=lease_s, heartbeat_s=lease_s / 5)


def app(folder: Path) -> None:
    """A supervisor over such workers, until it is killed."""
    Supervisor(open_store(folder), folder, command=worker_command(folder)).start()
    time.sleep(600)


def worker_command(folder: Path) -> list[str]:
    """`env` becomes the worker, so the process id is the worker's own."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, __file__, str(folder), "5"]


def engine(context: WorkerContext) -> None:
    context.log(f"attempt {context.run.attempt} in process {os.getpid()}")
    behaviour = context.run.name
    if behaviour == "crash":
        context.stage("int2", 1)
        context.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "deaf":
        context.stage("int2", 1)
        while True:
            time.sleep(0.05)
    if behaviour == "disk full":
        soft = os.stat(context.checkpoint_dir.parents[1] / "upq.db").st_size + 200_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
        context.save_artifact(make_artifact(1_000_000))
    if behaviour == "out of memory":
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, resource.RLIM_INFINITY))
        torch.ones(2**34)
    if behaviour == "locks" and context.run.attempt == 1:
        with context._store._connections.write():
            os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "lingers":
        threading.Thread(target=time.sleep, args=[600]).start()  # the interpreter waits for it
    if behaviour in ("quick", "locks", "lingers"):
        return
    count_steps(context)


def count_steps(context: WorkerContext) -> None:
    """Forty steps of 50 ms; the number of finished ones is the checkpoint."""
    checkpoint = context.checkpoint_dir / "step"
    first = int(checkpoint.read_bytes()) if checkpoint.exists() else 0
    context.stage("int2", STEPS)
    for step in range(first, STEPS):
        context.check(kept=True)
        time.sleep(0.05)
        context.metric("jsd", step, 1.0 / (step + 1))
        context.progress(step + 1, detail=f"step {step + 1}")
        write_bytes_atomic(checkpoint, str(step + 1).encode())


def make_artifact(elements: int, value: int = 1) -> Artifact:
    tensors = {"a": torch.full((elements,), value), "b": torch.full((elements,), value + 1)}
    return Artifact("INT4", {"bits_per_weight": 4.0}, tensors, {"config.json": b"{}"})


def claim_all(folder: Path, output: Path, start: Barrier) -> None:
    """Claim until the queue is empty; writes the ids of the runs, one a line."""
    store, claimed = open_store(folder), []
    start.wait()
    while run := store.claim(output.name, os.getpid(), 60.0):
        claimed.append(f"{run.id}\n")
        time.sleep(0.01)  # a little work, so that the others get their turn
    output.write_text("".join(claimed))


def kill_saves(folder: Path, output: Path) -> None:
    """Kill a process at each SQL statement of a save in turn, then others at random moments.

    Writes a line per process: killed (0 or 1) and artifacts found (0 or 1).
    """
    outcomes = []
    store = open_store(folder)
    seeded = random.Random(0)
    for attempt in range(1, 37):
        run_id = store.enqueue(RunConfig())
        store.close()  # connections do not survive a fork
        child = os.fork()
        if child == 0:
            save_and_die(folder, attempt if attempt <= STATEMENTS else None)
        if attempt > STATEMENTS:
            time.sleep(seeded.uniform(0.0, 0.15))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        rows = store.artifacts(run_id)
        if rows:
            loaded = store.load_artifact(run_id, "INT4").tensors
            assert [int(t.float().mean()) for t in loaded.values()] == [attempt, attempt + 1]
        store.reconcile(lambda *_: False)
        problems = store.doctor()
        assert not problems, problems
        store.request_cancel(run_id)
        store.delete(run_id)
        outcomes.append(f"{int(os.WIFSIGNALED(status))} {len(rows)}\n")
    output.write_text("".join(outcomes))


def save_and_die(folder: Path, statement: int | None) -> None:
    """Save an artifact; with `statement`, die before that SQL statement of the save."""
    store = open_store(folder)
    run = store.claim("w", os.getpid(), 60.0)
    assert run is not None
    lease, counter = store.lease(run), [0]

    def count(_: str) -> None:
        counter[0] += 1
        if counter[0] == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    with lease._connections.read() as db:
        db.conn.set_trace_callback(count if statement else None)
    lease.save_artifact(make_artifact(1000 if statement else 2_000_000, run.id))
    os._exit(0)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), float(sys.argv[2]))
