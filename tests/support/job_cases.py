"""What the tests of runs and their workers share: processes, and waiting for what they do."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any

from upq.config import RunConfig
from upq.store import Store

#: Processes are forked from one that has imported torch and the rest once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["worker_process", "upq.quantize.pipeline", "upq.jobs.served"])

Spawn = Callable[..., ForkServerProcess]


@contextmanager
def processes() -> Iterator[Spawn]:
    """Starts a function in a process; what is still alive behind the block is killed."""
    started: list[ForkServerProcess] = []

    def start(function: Callable[..., None], *arguments: Any, **options: Any) -> ForkServerProcess:
        process = PROCESSES.Process(target=function, args=arguments, kwargs=options)
        process.start()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.join()


def exit_code(process: ForkServerProcess, timeout_s: float = 60.0) -> int | None:
    process.join(timeout_s)
    return process.exitcode


def enqueue(store: Store, behaviour: str) -> int:
    return store.enqueue(RunConfig(), name=behaviour)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def wait_for_state(store: Store, run_id: int, state: str) -> None:
    wait_for(lambda: store.run(run_id).state == state)


def wait_for_step(store: Store, run_id: int, step: int) -> None:
    wait_for(lambda: store.run(run_id).stage_step >= step)


def log_text(store: Store, run_id: int) -> str:
    return "\n".join(line for _, line in store.log_lines(run_id))
