"""Whose turn it is: programs of ours on one machine do not compute with all cores at the same moment.

The threads of one program wait for one another thousands of times a second. Where another program has a core meanwhile,
nearly all of that time is lost: two trainings side by side had a fifth of their speed each (docs/results.md). So what
runs in the background computes only while it holds a lock, hands it on between two pieces of work to whoever waits for
it, and lets answers that a person reads go first. The kernel takes the locks of a dead program back; nobody waits for
long for one that was stopped.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import platformdirs

#: A piece of background work is put off by no more than this for answers, so that runs go on behind a busy chat.
ANSWERS_S = 5.0
#: A turn lasts at least so long, where a program could be interrupted more often.
TURN_S = 1.0
#: Who waits longer for a turn computes without one: the program that has it was probably stopped.
PATIENCE_S = 30.0
_LOOK_S = 0.01


class Turns:
    """The place of one background program in the row, until the end of the block. Used by one thread.

    folder: where the locks are, by default one for all programs of this person. Where it cannot be written there are
    no turns, and everybody computes at once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._files = [_opened(name, folder) for name in ("turn", "next", "answers")]
        self._has_turn, self._since = False, 0.0
        self._patience_s = PATIENCE_S

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        for file in filter(None, self._files):
            file.close()

    def wait(self, check: Callable[[], None]) -> None:
        """Return when it is this program's turn, which stays its own until the next call.

        check is called many times a second meanwhile; what it raises passes through.
        """
        turn, row, answers = self._files
        if turn is None or row is None or answers is None:
            return
        if self._has_turn and time.monotonic() - self._since < TURN_S:
            return
        until = time.monotonic() + ANSWERS_S
        while _is_taken(answers) and time.monotonic() < until:
            check()
            time.sleep(_LOOK_S)
        self._since = time.monotonic()
        if self._has_turn and not _is_taken(row):
            return
        if self._has_turn:
            fcntl.flock(turn, fcntl.LOCK_UN)
            self._has_turn = False
        until = time.monotonic() + self._patience_s
        if _taken(row, until, check):
            try:
                self._has_turn, self._since = _taken(turn, until, check), time.monotonic()
            finally:
                fcntl.flock(row, fcntl.LOCK_UN)
        self._patience_s = PATIENCE_S if self._has_turn else 0.0


@contextmanager
def answering(folder: Path | None = None) -> Iterator[None]:
    """What is computed in this block is read by somebody: background work waits at its next pause."""
    file = _opened("answers", folder)
    try:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_SH)
        yield
    finally:
        if file is not None:
            file.close()


def is_busy(folder: Path | None = None) -> bool:
    """Whether any program of this person on this machine answers somebody now, or computes in the background."""
    for name in ("answers", "turn"):
        file = _opened(name, folder)
        if file is not None:
            with file:
                if _is_taken(file):
                    return True
    return False


def _opened(name: str, folder: Path | None) -> IO[bytes] | None:
    """A lock file of this machine: a folder may be shared between several. None where it cannot be written."""
    cache = os.environ.get("UPQ_CACHE") or platformdirs.user_cache_dir("upq-studio")
    path = (folder or Path(cache) / "turns") / f"{socket.gethostname()}-{name}.lock"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    return None


def _taken(file: IO[bytes], until: float, check: Callable[[], None]) -> bool:
    """Wait for a lock until a monotonic time; whether it was got."""
    while not _try(file):
        if time.monotonic() > until:
            return False
        check()
        time.sleep(_LOOK_S)
    return True


def _is_taken(file: IO[bytes]) -> bool:
    """Whether another program holds a lock."""
    if not _try(file):
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _try(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
