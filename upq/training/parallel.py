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


class NoLongerNeeded(Exception):
    """A helping process may leave: the main process goes on alone, or was told to stop."""


class Checks(Protocol):
    """Something that is asked whether the run has to stop, such as a RunContext."""

    def check(self, *, kept: bool = False) -> None: ...


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


def from_main(value: Any = None) -> Any:
    """The value that the main process gives, in every process; the others wait for it, and what they give is lost."""
    if not _is_joined():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def check(context: Checks) -> None:
    """Call context.check(kept=True) in the main process; where it raises anything, the others raise NoLongerNeeded."""
    if not _is_joined():
        return context.check(kept=True)
    error = None
    if is_main():
        try:
            context.check(kept=True)
        except BaseException as caught:
            error = caught
    goes_on = from_main(error is None)
    if error is not None:
        raise error
    if not goes_on:
        raise NoLongerNeeded
    return None


@contextmanager
def joint_work(config: str, checkpoints: Path) -> Iterator[None]:
    """Work that all processes of a run do. The main process calls the others, who wait in `upq.jobs.distributed` and
    come to the same place over the run's checkpoints; behind the work they raise NoLongerNeeded.

    config: the run's, as JSON. checkpoints: the folder that the run's checkpoints are in.
    """
    if size() > 1 and is_main():
        from_main({"config": config, "checkpoints": str(checkpoints)})
    yield
    if not is_main():
        raise NoLongerNeeded


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
