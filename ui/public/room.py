"""Room on the disk for visitors' runs: where it is used up, the oldest finished ones are deleted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from upq.errors import UserError
from upq.store import HOUSE, Run, Store, checkpoint_dir, exports_dir

GB = 10**9
LIVE = ("queued", "running", "interrupted")


class Room:
    """What the runs of all visitors may take of the disk below a data folder. limit: bytes."""

    def __init__(self, store: Store, folder: Path, limit: int) -> None:
        self._store = store
        self._folder = folder
        self._limit = limit

    def used(self) -> int:
        """Bytes of all that visitors' runs left: artifacts, checkpoints, exports, results of checks and logs."""
        return sum(self._bytes_of(run) for run in self._visitors_runs())

    def make(self) -> None:
        """Delete the oldest finished runs of visitors until the rest fits. Raises UserError("no_room")."""
        runs = self._visitors_runs()
        sizes = {run.id: self._bytes_of(run) for run in runs}
        used = sum(sizes.values())
        for run in reversed(runs):
            if used < self._limit:
                return
            if run.state not in LIVE and not self._has_live_check(run, runs):
                self._store.delete(run.id)
                self.clear(run)
                used -= sizes[run.id]
        if used >= self._limit:
            raise UserError(
                "no_room",
                f"Visitors' runs at work take {used / GB:.1f} GB of the {self._limit / GB:.1f} GB that they may.",
                "Try again when one of them has ended.",
            )

    def _visitors_runs(self) -> list[Run]:
        return [run for run in self._store.runs(sys.maxsize) if run.owner != HOUSE]

    def _has_live_check(self, run: Run, runs: list[Run]) -> bool:
        return any(check.parent_id == run.id and check.state in LIVE for check in runs)

    def clear(self, run: Run) -> None:
        """Remove what a deleted run left outside of the database."""
        for place in self._places(run):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)

    def _bytes_of(self, run: Run) -> int:
        stored = sum(row.size_bytes for row in self._store.artifacts(run.id))
        stored += self._store.text_bytes(run.id)
        return stored + sum(map(_size, self._places(run)))

    def _places(self, run: Run) -> Iterator[Path]:
        yield checkpoint_dir(self._folder, run.id)
        yield from exports_dir(self._folder).glob(f"run-{run.id}-*")


def _size(place: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    paths = [place, *place.rglob("*")]
    return sum(path.lstat().st_size for path in paths if path.is_file())
