"""One run inside a worker process: what the engine may ask of it, and what its end means.

`execute` is the job boundary: whatever the engine raises becomes a state of the run and, for
people, one sentence with a hint. The engine runs in the main thread; a second thread renews the
lease, so that a long computation does not look like a dead worker.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from upq.artifact import Artifact
from upq.errors import Cancelled, Interrupted, UserError
from upq.files import sweep
from upq.jobs.failures import describe_failure
from upq.jobs.turns import Turns
from upq.machine import environment
from upq.store import LostLease, Run, Store, checkpoint_dir

LEASE_S = 30.0
HEARTBEAT_S = 5.0
FLUSH_S = 0.5
#: How long the end of a run waits for a renewal that is under way. One that comes later finds that the run has ended.
LAST_BEAT_S = 0.5
#: How the name of a worker begins whose runs compute on the processor's cores (upq.jobs.worker.worker_name).
ON_CORES = "cpu@"


def sweep_checkpoints(store: Store, folder: Path) -> None:
    """Remove the checkpoints of runs that are done or deleted, and what killed writers left."""
    states = {checkpoint_dir(folder, run.id): run.state for run in store.runs(limit=sys.maxsize)}
    parent = folder / "checkpoints"
    for path in parent.iterdir() if parent.is_dir() else ():
        state = states.get(path, "done")
        if state == "done":
            shutil.rmtree(path, ignore_errors=True)
        elif state != "running":
            sweep(path)


class WorkerContext:
    """upq.context.RunContext over a lease; for check runs also what those store.

    Metrics, log lines and progress are buffered and written together, twice a second at most. Used
    as a context manager: renews the lease from its own thread until the end of the block.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        folder: Path,
        terminate: threading.Event,
        *,
        lease_s: float = LEASE_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.run = run
        self.lease = store.lease(run)
        self._store = store
        self.checkpoint_path = checkpoint_dir(folder, run.id)
        self._terminate = terminate
        self._cancel = threading.Event()
        self._lost = threading.Event()
        self._check_waits = threading.Event()
        self._ended = threading.Event()
        self._lease_s, self._heartbeat_s = lease_s, heartbeat_s
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._points: list[tuple[str, int, float, float]] = []  # with the time, monotonic
        self._lines: list[tuple[float, str]] = []
        self._progress: tuple[int, float | None, float | None, str] | None = None
        self._stage_total = 0
        self._stage_start: tuple[int, float] | None = None  # first step seen, and when
        self._flushed_at = -math.inf
        self._turns: Turns | None = None

    def __enter__(self) -> WorkerContext:
        if (self.run.worker or "").startswith(ON_CORES):
            self._turns = Turns()
        self._heartbeat.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._turns:
            self._turns.__exit__()
        self._ended.set()
        self._heartbeat.join(LAST_BEAT_S)

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s):
            try:
                if self.lease.renew(self._lease_s):
                    self._cancel.set()
                if self.lease.is_check_waiting():
                    self._check_waits.set()
            except LostLease:
                self._lost.set()
                return
            except UserError:
                continue  # a busy or full database; the lease leaves time for more attempts

    @property
    def checkpoint_dir(self) -> Path:
        """Folder for resumable state, private to this run; exists."""
        self.checkpoint_path.mkdir(parents=True, exist_ok=True)
        return self.checkpoint_path

    def check(self, *, kept: bool = False) -> None:
        """Raise Cancelled, Interrupted or LostLease if the run has to stop; wait until the cores are this run's.

        kept: as upq.context says; a quantization then steps aside for a check, by the rule of upq.store.asides.
        """
        self._raise_if_over()
        if kept and self._check_waits.is_set():
            self._step_aside()
        if self._turns:
            self._turns.wait(self._raise_if_over)
        self._flush_if_due()

    def _raise_if_over(self) -> None:
        if self._lost.is_set():
            raise LostLease(f"run {self.run.id}")
        if self._cancel.is_set():
            raise Cancelled
        if self._terminate.is_set():
            raise Interrupted

    def _step_aside(self) -> None:
        """Raise Interrupted for the check that goes first; return where none waits any more."""
        self._check_waits.clear()
        check = self.lease.step_aside()
        if check is not None:
            self.log(f"Steps aside for check #{check}, goes on afterwards.")
            raise Interrupted

    def stage(self, name: str, total: int) -> None:
        """Enter a stage of `total` steps (0: unknown)."""
        self.flush()
        self.lease.stage(name, total)
        self._stage_total, self._stage_start = total, None

    def progress(self, step: int, *, tokens_per_s: float | None = None, detail: str = "") -> None:
        """`step` steps of the stage are done."""
        self._progress = (step, tokens_per_s, self._eta_s(step), detail)
        self._flush_if_due()

    def metric(self, series: str, step: int, value: float) -> None:
        """Record one point of a curve. Raises FloatingPointError if it is not finite."""
        if not math.isfinite(value):
            raise FloatingPointError(f"{series} is {value} at step {step}")
        self._points.append((series, step, value, time.monotonic()))
        self._flush_if_due()

    def log(self, message: str) -> None:
        """Add one line to the run's log."""
        self._lines.append((time.time(), message))
        self._flush_if_due()

    def flush(self) -> None:
        """Write what is buffered."""
        points, lines, progress = self._points, self._lines, self._progress
        self._points, self._lines, self._progress = [], [], None
        self._flushed_at = now = time.monotonic()
        if points:
            self.lease.metrics((name, step, value, now - at) for name, step, value, at in points)
        if lines:
            self.lease.log(lines)
        if progress:
            self.lease.progress(*progress, peak_bytes(), gpu_peak_bytes())

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def _eta_s(self, step: int) -> float | None:
        now = time.monotonic()
        if self._stage_start is None:
            self._stage_start = (step, now)
        first_step, started = self._stage_start
        if step <= first_step or self._stage_total <= step:
            return None
        return (now - started) / (step - first_step) * (self._stage_total - step)

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        """Teacher answers stored under `key`: prompt digest -> token ids."""
        return self._store.cached_answers(key)

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        """Store teacher answers under `key`; existing ones are kept."""
        self._store.save_answers(key, answers)

    def save_artifact(self, artifact: Artifact) -> None:
        """Store an artifact in one transaction; a second one of its precision is a no-op."""
        self.lease.save_artifact(artifact)

    def save_measurements(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store fidelity rows."""
        self.lease.save_measurements(rows)

    def save_check_result(self, precision: str, position: int, result: dict[str, Any]) -> None:
        """Store the verdicts on one prompt of this check run."""
        self.lease.save_check_result(precision, position, result)

    def check_results(self) -> list[dict[str, Any]]:
        """What this check run has stored so far: dicts of precision, position, result."""
        return self._store.check_results(self.run.id)


#: Does the work of a run, of either kind.
Engine = Callable[[WorkerContext], None]


def execute(context: WorkerContext, engine: Engine) -> None:
    """Run the engine and store how it ended. Writes nothing if the run was taken away meanwhile."""
    with context:
        try:
            context.lease.environment(environment())
            engine(context)
            context.flush()
            _finish(context, "done")
        except Cancelled:
            _finish(context, "cancelled")
        except Interrupted:
            _finish(context, "interrupted")
        except LostLease:
            return
        except Exception as error:  # the job boundary
            _fail(context, error)


def _finish(context: WorkerContext, state: str) -> None:
    try:
        context.flush()
        context.lease.finish(state)
    except LostLease:
        return
    if state == "done":
        shutil.rmtree(context.checkpoint_path, ignore_errors=True)


def _fail(context: WorkerContext, error: Exception) -> None:
    failure = describe_failure(error)
    lines = "".join(traceback.format_exception(error))
    sweep(context.checkpoint_path)  # half a checkpoint may be what filled the disk
    try:
        _flush_or_drop(context)
        context.lease.finish("failed", failure.code, failure.message, failure.hint, lines)
    except LostLease:
        return


def _flush_or_drop(context: WorkerContext) -> None:
    """Write what is buffered; on a full disk the last half second of curves is given up."""
    try:
        context.flush()
    except UserError:
        return


def peak_bytes() -> int:
    """The most memory that this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def gpu_peak_bytes() -> int | None:
    """The most memory that torch has had allocated on the GPU in this process; None if it used none."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
