"""A function of a stranger's program, in a process of its own that ends where the work takes too long.

A chat template and the regular expressions of a suite can run without end, and Python stops no thread. So they run in
a small process that reads questions as lines of JSON and answers the same way. It is limited in processor time, which
does not depend on how busy the machine is, and in memory; the system kills it, whatever it is doing. It is kept for
the next question, and it imports one file by its path, so that it needs none of the libraries of its parent. A process
serves one thread at a time: who asks while all are busy gets another one, and nobody waits for a stranger's program.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Address space of a process, 4 GiB.
MOST_BYTES = 1 << 32
#: Longest wait for an answer and for a process to be ready, for machines that are suspended or starved.
PATIENCE_S = 120
#: Processes that are kept while nobody asks.
KEPT = 2
_CHUNK_BYTES = 1 << 16
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Stopped(Exception):
    """There is no answer: the time or the memory was used up, or the function raised. It says which."""


class Killable:
    """Calls `function` of a Python file, with arguments and result of JSON, for at most so many seconds of work."""

    def __init__(self, file: Path, function: str, seconds: float) -> None:
        self.seconds = seconds
        self._command = [sys.executable, __file__, str(file), function, str(seconds)]
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()  # held to take and to give back, never while a process works

    def __call__(self, *arguments: Any) -> Any:
        """The function's result. Raises Stopped."""
        process = self._take()
        try:
            answer = self._ask(process, arguments)
        except BaseException:
            _end(process)
            raise
        with self._lock:
            kept = len(self._idle) < KEPT
            if kept:
                self._idle.append(process)
        if not kept:
            _end(process)
        if "stopped" in answer:
            raise Stopped(answer["stopped"])
        return answer["result"]

    def close(self) -> None:
        """End the processes that are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _take(self) -> subprocess.Popen[bytes]:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._start()
            if process.poll() is None:
                return process
            _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        atexit.unregister(self.close)
        atexit.register(self.close)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=os.environ | _ONE_THREAD,
                start_new_session=True,  # Ctrl-C in a terminal is not for it
            )
        except OSError as error:
            raise Stopped(f"its process cannot be started: {error.strerror}") from error
        try:
            _read_line(process)
        except EOFError as error:
            _end(process)
            raise Stopped("its process cannot be started") from error
        except BaseException:
            _end(process)
            raise
        return process

    def _ask(self, process: subprocess.Popen[bytes], arguments: Any) -> dict[str, Any]:
        assert process.stdin is not None
        question = memoryview(json.dumps(arguments).encode() + b"\n")
        try:
            while question:
                question = question[process.stdin.write(question) or 0 :]
            return json.loads(_read_line(process))
        except (BrokenPipeError, EOFError):
            if process.wait() == -signal.SIGPROF:
                raise Stopped(f"it does not end within {self.seconds:g} s of work") from None
            raise Stopped("its process was killed, probably for its memory") from None


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    """What the process writes up to a line break. Raises EOFError where it ends first, Stopped where it never does."""
    assert process.stdout is not None
    until = time.monotonic() + PATIENCE_S
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    line = bytearray()
    while not line.endswith(b"\n"):
        if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
            raise Stopped(f"its process does not answer for {PATIENCE_S} s")
        chunk = process.stdout.read(_CHUNK_BYTES)
        if not chunk:
            raise EOFError
        line += chunk
    return bytes(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _function(file: str, name: str) -> Callable[..., Any]:
    """Import a file by its path, and nothing of the packages around it."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _serve(file: str, name: str, seconds: float) -> None:
    """The process: answer one question a line until there are none."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the function prints is no answer
    function = _function(file, name)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MOST_BYTES if hard == resource.RLIM_INFINITY else min(MOST_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    answer: dict[str, Any] = {"result": None}
    while True:
        line = memoryview(json.dumps(answer).encode() + b"\n")
        while line:
            line = line[answers.write(line) or 0 :]
        question = sys.stdin.readline()
        if not question:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = {"result": function(*json.loads(question))}
        except Exception as error:
            answer = {"stopped": str(error) or type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, whose modules have the names of others
    _serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
