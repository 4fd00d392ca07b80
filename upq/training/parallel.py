"""Several processes that train one model together; everything here is a no-op where there is only one.

`accelerate launch` starts the processes and `upq.jobs.distributed` lets them in. Each step's sequences are dealt out,
the gradients are added up, and every process then makes the same update. Only the main process reports and saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class Left(Exception):
    """A helping process is no longer needed: the main process goes on alone, or was told to stop."""


class Checks(Protocol):
    """What may stop a run."""

    def check(self) -> None: ...


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _is_joined() else 1


def is_main() -> bool:
    """Whether this process reports and saves."""
    return not _is_joined() or distributed.get_rank() == 0


def share(rows: list[T]) -> list[T]:
    """This process's part of the sequences of a batch."""
    return rows[distributed.get_rank() :: size()] if _is_joined() else rows


def add_up(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the processes, which have to give them in one order."""
    if _is_joined():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def say(word: Any = None) -> Any:
    """What the main process says, in every process; waits for it."""
    if not _is_joined():
        return word
    words = [word]
    distributed.broadcast_object_list(words, src=0)
    return words[0]


def check(context: Checks) -> None:
    """context.check() of the main process, obeyed by all: the others raise Left where it raises anything."""
    if not _is_joined():
        return context.check()
    error = None
    if is_main():
        try:
            context.check()
        except BaseException as caught:
            error = caught
    goes_on = say(error is None)
    if error is not None:
        raise error
    if not goes_on:
        raise Left
    return None


@contextmanager
def together(config: str, checkpoints: Path) -> Iterator[None]:
    """Work that all processes of a run do. The main process calls the others in, who wait in `upq.jobs.distributed` and
    come by the same way over the checkpoints; behind it they leave by raising Left. config: the run's, as JSON.
    """
    if size() > 1 and is_main():
        say({"config": config, "checkpoints": str(checkpoints)})
    yield
    if not is_main():
        raise Left


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
