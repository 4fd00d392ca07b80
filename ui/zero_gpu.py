"""On a ZeroGPU Space an answer is computed in a process that borrows a GPU for one call; elsewhere nothing changes.

The borrowing process is a fork and gets the question as values, so it reads the models from the store itself, and keeps
them for as long as the Space lets it live. Runs train on the CPU: a call is too short for them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from upq.decode import Decoding, Piece
from upq.jobs import Models
from upq.store import open_store

#: What is booked for reading a model and the conversation, and the slowest writing that still comes to its end.
START_S, TOKENS_PER_S = 20, 20
#: The longest call that is asked for, seconds: what visitors without an account have in a day.
LONGEST_S = 120


@dataclass(frozen=True)
class Asked:
    """A question to a model of a data folder, as values that another process takes."""

    folder: str
    run_id: int | None
    precision: str
    source: str
    messages: list[dict[str, str]]
    decoding: Decoding


def duration(asked: Asked) -> int:
    """Seconds of the GPU that an answer is given."""
    return min(LONGEST_S, START_S + asked.decoding.max_new_tokens // TOKENS_PER_S)


def on_gpu(asked: Asked) -> Iterator[Piece]:
    """Answer in the process that has the GPU."""
    served = _models(asked.folder).get(asked.run_id, asked.precision, asked.source)
    yield from served.answer(asked.messages, asked.decoding)


@lru_cache(1)
def _models(folder: str) -> Models:
    return Models(open_store(Path(folder)))


class ZeroGpu:
    """Borrows a GPU for each answer. borrowing: `on_gpu`, as the Space calls it."""

    def __init__(self, folder: Path, borrowing: Callable[[Asked], Iterator[Piece]]) -> None:
        self._folder = str(folder)
        self._borrowing = borrowing

    def answer(
        self,
        model: tuple[int | None, str, str],
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool],
    ) -> Iterator[Piece]:
        """Served.answer on a borrowed GPU. model: run, precision and source, as Models.get takes them."""
        pieces: Any = self._borrowing(Asked(self._folder, *model, messages, decoding))
        with closing(pieces):
            for piece in pieces:
                if should_stop() and not piece.done:
                    yield replace(piece, done=True, finish="cancelled")
                    return
                yield piece


def zero_gpu(folder: Path) -> ZeroGpu | None:
    """What borrows GPUs, on a ZeroGPU Space; None elsewhere. To be called before torch looks for a GPU."""
    if importlib.util.find_spec("spaces") is None:
        return None
    spaces = importlib.import_module("spaces")
    if not importlib.import_module("spaces.config").Config.zero_gpu:
        return None
    return ZeroGpu(folder, spaces.GPU(duration=duration)(on_gpu))
