"""Keeps one worker process alive for the app, says why one died, and makes every cancel end.

The worker is a process of its own session: it survives the app, and its memory and crashes stay its
own. A cancel is first the flag in the database, then SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upq.errors import UserError
from upq.jobs.failures import lost_worker, stopped_worker
from upq.jobs.worker import PARENT, is_on_this_machine, lock_holder, worker_name
from upq.store import SILENT, Ending, Store

TICK_S = 0.5
TERMINATE_AFTER_S = 15.0
KILL_AFTER_S = 30.0
STOP_WAIT_S = 10.0
#: How long a worker whose run has ended may take to leave. It has nothing to lose: what its run left is committed.
LEAVE_S = 1.0
_DISOBEDIENT = Ending(
    "the worker did not stop when it was asked to and was killed by signal 9 (SIGKILL)",
    "Resume the run to go on from its last checkpoint.",
)
LONGEST_BACKOFF_S = 30.0
CLOCK_JUMP_S = 2.0
LOG_BYTES = 5 * 2**20

_logger = logging.getLogger(__name__)


@dataclass
class _Cancel:
    """A cancel that a worker has been asked to obey. since: monotonic seconds."""

    worker: str
    since: float
    terminated: bool = False


class Supervisor:
    """One worker process for a data folder and device, watched from a thread of the app.

    command: what starts a worker; the default is this program's own.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        device: str = "cpu",
        *,
        command: list[str] | None = None,
        terminate_after_s: float = TERMINATE_AFTER_S,
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        default = [sys.executable, "-m", "upq", "worker", "--data-dir", str(folder)]
        self._command = command or [*default, "--device", device]
        self._store = store
        self._folder = folder
        self._device = device
        self._terminate_after_s = terminate_after_s
        self._kill_after_s = kill_after_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._started_at = 0.0
        self._revision = 0  # of the database, when the process was started
        self._stopped_at: float | None = None  # when a signal was first seen to have stopped it
        self._finished_at: float | None = None  # when its run was first seen to have ended
        self._killed_for: Ending | None = None
        self._next_start = 0.0
        self._backoff_s = 0.0
        self._early_exits = 0
        self._cancel: _Cancel | None = None
        self._clock_offset = time.time() - time.monotonic()
        self._trust_leases_from = 0.0
        self._last_exit = ""
        self._trouble = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start watching; the first worker starts at once."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the worker to leave its run resumable and wait for it, ten seconds at most."""
        self._stopping.set()
        self._thread.join()
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reap(process)

    @property
    def has_worker(self) -> bool:
        """Whether its worker process is there."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether its worker process has imported what runs need, and waits for one or is on one."""
        return self.has_worker and self._is_ready

    @property
    def trouble(self) -> str:
        """What keeps it from its work now, such as a full disk, as a sentence and a hint; empty where nothing does."""
        return self._trouble

    def status(self) -> dict[str, Any]:
        """For the app's header: alive, pid, run_id (None: idle), last_exit (a phrase or empty), early_exits (how many
        workers in a row failed at their start).
        """
        process = self._process
        run = self._store.live_run()
        return {
            "alive": self.has_worker,
            "pid": process.pid if process else None,
            "run_id": run.id if run else None,
            "last_exit": self._last_exit,
            "early_exits": self._early_exits,
        }

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tick()
                self._trouble = ""
            except (UserError, OSError) as error:  # a busy database, a full disk: try again
                _logger.warning("supervisor: %s", error)
                self._trouble = f"{error} {getattr(error, 'hint', '')}".strip()
            self._stopping.wait(TICK_S)

    def _tick(self) -> None:
        process = self._process
        if process is not None:
            self._press_stopped(process)
            self._press_finished(process)
            if process.poll() is not None:
                self._reap(process)
            elif not self._is_ready:  # a worker takes the lock behind its imports
                self._is_ready = lock_holder(self._folder, self._device) == process.pid
        if self._process is None and time.monotonic() >= self._next_start:
            self._process = self._spawn()
        self._recover()
        self._press_cancels()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._revision = self._store.latest_revision()
        log_path = self._folder / "logs" / "worker.log"
        log_path.parent.mkdir(exist_ok=True)
        if log_path.exists() and log_path.stat().st_size > LOG_BYTES:
            log_path.replace(log_path.with_suffix(".log.1"))
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, PARENT: str(os.getpid())},
            )
        self._started_at, self._is_ready = time.monotonic(), False
        self._stopped_at = self._finished_at = self._killed_for = None
        return process

    def _press_stopped(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker that a signal has stopped for long: it may hold the lock of the database, so nobody could even
        see that its lease is over.
        """
        ending = stopped_worker(process.pid)
        if ending is None:
            self._stopped_at = None
        elif self._stopped_at is None:
            self._stopped_at = time.monotonic()
        elif time.monotonic() - self._stopped_at > self._kill_after_s:
            self._killed_for = ending
            process.kill()
            process.wait()

    def _press_finished(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker whose run has ended and which has not left: others wait for its place."""
        worker = worker_name(self._device, process.pid)
        if self._finished_at is None and self._store.has_left(worker, self._revision):
            self._finished_at = time.monotonic()
        if self._finished_at is not None and time.monotonic() - self._finished_at > LEAVE_S:
            process.kill()
            process.wait()

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        """Note how the worker ended, hand its run on, and plan the next start."""
        has_finished, ending = self._finished_at is not None, lost_worker(process.returncode)
        if process.returncode == -signal.SIGKILL and self._killed_for:
            ending = self._killed_for
        self._last_exit = "" if has_finished or not process.returncode else ending.note
        self._process = None
        lived_s = time.monotonic() - self._started_at
        failed_early = bool(self._last_exit) and lived_s < LONGEST_BACKOFF_S
        self._backoff_s = min(2 * self._backoff_s or 1.0, LONGEST_BACKOFF_S) if failed_early else 0
        worker = worker_name(self._device, process.pid)
        self._early_exits = self._early_exits + 1 if failed_early else 0
        self._next_start = time.monotonic() + self._backoff_s
        if self._store.reconcile(lambda name, _: name != worker, {worker: ending}):
            self._backoff_s = self._early_exits = 0  # it died over a run, not at its start
            self._next_start = time.monotonic()
        if not self._stopping.is_set():
            self._store.requeue_interrupted()

    def _recover(self) -> None:
        """Hand on the runs of workers that are gone or silent, also those of an earlier app."""
        if self._clock_jumped():
            return
        endings = self._seen_stopped()
        lost = self._store.reconcile(_is_alive, endings)
        if not lost:
            return
        holder = lock_holder(self._folder, self._device)
        for run in map(self._store.run, lost):
            # Silent but not gone, such as a stopped process: it would keep the device locked.
            if holder is not None and run.worker == (name := worker_name(self._device, holder)):
                self._killed_for = endings.get(name, SILENT)
                _send(holder, signal.SIGKILL)
        self._store.requeue_interrupted()

    def _seen_stopped(self) -> dict[str, Ending]:
        """Worker -> the signal that keeps it from going on."""
        process = self._process
        ending = stopped_worker(process.pid) if process else None
        return {worker_name(self._device, process.pid): ending} if process and ending else {}

    def _clock_jumped(self) -> bool:
        """Whether leases say nothing now: the wall clock was moved and not all are renewed yet."""
        offset = time.time() - time.monotonic()
        if abs(offset - self._clock_offset) > CLOCK_JUMP_S:
            self._clock_offset = offset
            run = self._store.live_run()
            self._trust_leases_from = time.monotonic() + ((run and run.lease_s) or 0.0)
        return time.monotonic() < self._trust_leases_from

    def _press_cancels(self) -> None:
        """Signal a worker that has not obeyed a cancel for a while."""
        run = self._store.live_run()
        if run is None or not run.cancel_requested:
            self._cancel = None
            return
        if self._cancel is None or self._cancel.worker != run.worker:
            self._cancel = _Cancel(run.worker or "", time.monotonic())
        waited_s = time.monotonic() - self._cancel.since
        if waited_s < self._terminate_after_s or run.pid is None:
            return
        if run.pid != lock_holder(self._folder, self._device):
            return  # not a process that we know to be the run's worker
        if waited_s >= self._kill_after_s:
            self._killed_for = _DISOBEDIENT
            _send(run.pid, signal.SIGKILL)
        elif not self._cancel.terminated:
            self._cancel.terminated = True
            _send(run.pid, signal.SIGTERM)


def _is_alive(worker: str, pid: int) -> bool:
    """False only for a process that is known to be gone."""
    if not is_on_this_machine(worker):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
