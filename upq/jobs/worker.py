"""The worker process: takes one run from the queue, executes it and leaves.

Its memory goes back to the system with it; the supervisor starts the next one. One worker per data
folder and device, kept by a file lock, which the kernel releases however the process ends. Whoever
holds the lock may therefore take every run that an earlier worker of this device left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from upq.config import CheckConfig, RunConfig
from upq.jobs.worker_context import (
    HEARTBEAT_S,
    LEASE_S,
    Engine,
    WorkerContext,
    execute,
    sweep_checkpoints,
)
from upq.store import Store, open_store

POLL_S = 0.5
#: Environment variable: the process that started this one, which may be gone before this one can look.
PARENT = "UPQ_PARENT"
#: How far a run steps back for the chat and for other programs: it gets about a tenth of a core that both want.
NICENESS = 10
#: Where Linux weighs whole sessions against each other, a process's own niceness does not count between them.
SESSION_NICENESS = Path("/proc/self/autogroup")


def default_engine(store: Store) -> Engine:
    """Import the algorithms, which takes seconds, and connect them to runs."""
    from upq.evaluation import suites  # noqa: PLC0415 - heavy, and only a worker needs them
    from upq.jobs import served  # noqa: PLC0415 - heavy, and only a worker needs them
    from upq.quantize import pipeline  # noqa: PLC0415 - heavy, and only a worker needs them

    models = served.Models(store)

    def engine(context: WorkerContext) -> None:
        config = context.run.config
        if context.run.kind == "quantize":
            pipeline.run_quantization(RunConfig.from_values(config), context)
        else:
            suites.run_check(CheckConfig.from_values(config), context, models)

    return engine


def worker_main(
    folder: Path,
    device: str = "cpu",
    *,
    once: bool = False,
    load_engine: Callable[[Store], Engine] = default_engine,
    lease_s: float = LEASE_S,
    heartbeat_s: float = HEARTBEAT_S,
) -> None:
    """Execute one run of the data folder, waiting for one if the queue is empty.

    once: return if the queue is empty. Returns as well after SIGTERM or SIGINT, having left the run
    interrupted (a second signal ends the process at once), and when the process that started this
    one is gone and there is nothing to do.
    """
    parent = int(os.environ.pop(PARENT, os.getppid()))
    terminate = _on_signals()
    give_way()
    store = open_store(folder)
    engine = load_engine(store)

    def is_over() -> bool:
        return terminate.is_set() or os.getppid() != parent

    with _device_lock(lock_path(folder, device), is_over) as is_ours:
        if not is_ours:
            return
        store.reconcile(lambda worker, _: not _is_of_device(worker, device))
        store.requeue_interrupted()
        sweep_checkpoints(store, folder)
        pid = os.getpid()
        while not terminate.is_set():
            run = store.claim(worker_name(device, pid), pid, lease_s)
            if run:
                context = WorkerContext(
                    store, run, folder, terminate, lease_s=lease_s, heartbeat_s=heartbeat_s
                )
                execute(context, engine)
                return
            if once or is_over():
                return
            terminate.wait(POLL_S)


def leave() -> NoReturn:
    """End this process at once, its work being committed.

    An interpreter that shuts down ends its threads and frees gigabytes piece by piece; with a worker's priority, on a
    machine that is busy, that took a quarter of an hour, and runs were queued behind it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def worker_name(device: str, pid: int) -> str:
    """What a worker signs with: unique among living processes on all machines."""
    return f"{device}@{socket.gethostname()}:{pid}"


def is_on_this_machine(worker: str) -> bool:
    """Whether a worker's process id means something here."""
    return worker.rpartition(":")[0].partition("@")[2] == socket.gethostname()


def _is_of_device(worker: str, device: str) -> bool:
    return worker.partition("@")[0] == device and is_on_this_machine(worker)


def lock_path(folder: Path, device: str) -> Path:
    """The lock file of a device; while a worker holds it, its process id stands inside."""
    return folder / f"worker-{device.replace(':', '-')}.lock"


def lock_holder(folder: Path, device: str) -> int | None:
    """The process id of the worker that holds a device's lock, None if nobody does."""
    try:
        with lock_path(folder, device).open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
            return None
    except FileNotFoundError:
        return None


@contextmanager
def _device_lock(path: Path, give_up: Callable[[], bool]) -> Iterator[bool]:
    """Wait for the lock of a device; yields False if `give_up` said so first."""
    poll = threading.Event()
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if give_up():
                    yield False
                    return
                poll.wait(POLL_S)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def give_way() -> None:
    """Let the chat, which somebody waits for, go before this process; and before its session, if it is one of its own:
    a worker that was started by hand must not slow down all else that runs in its terminal.
    """
    with suppress(OSError):  # already lower, or not allowed
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            SESSION_NICENESS.write_text(str(NICENESS))


def _on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; the second one ends the process."""
    terminate = threading.Event()

    def handle(number: int, _: FrameType | None) -> None:
        if terminate.is_set():
            os._exit(128 + number)
        terminate.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return terminate
