"""Exports that are kept: made in the background, one after the other, each in a folder of its own.

Whoever asks for an export that is there gets it, and whoever asks for one that is being made waits for the same one.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upq.errors import Cancelled, UserError
from upq.export import Use, export, format_named
from upq.files import MANIFEST, remove_dir, sweep, write_bytes_atomic
from upq.jobs.exports import model_of, require_artifact, results_of
from upq.store import Store

#: Seconds between two looks whether an export that waits for its turn was cancelled.
LOOK_S = 0.2
#: Seconds that `stop` gives an export to notice it; between two of its steps lies a second or two.
STOP_S = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A model of a run in a format. format: its key. Raises UserError("bad_argument") where there is none with it."""

    run_id: int
    precision: str
    format: str

    def __post_init__(self) -> None:
        format_named(self.format)

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"run-{self.run_id}-{self.precision}-{self.format}"


@dataclass(frozen=True)
class Kept:
    """An export that is there. found: what the comparison found; "" where that is not known any more."""

    folder: Path
    files: list[Path]
    found: str
    uses: list[Use]

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(path.stat().st_size for path in self.files)


@dataclass
class Work:
    """An export at work. share: what is done of it, 0 to 1; None while it waits for another one.

    failure: why it could not be made, once it has ended.
    """

    share: float | None = None
    failure: UserError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let it end at its next step; nothing of it is left behind."""
        self._cancelled.set()

    def tell(self, share: float | None) -> None:
        """Note what is done. Raises Cancelled where it was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled
        self.share = share


class Exports:
    """The exports in a folder, and those that are being made. All methods may be called from any thread."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._works: dict[Wanted, Work] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def kept(self, wanted: Wanted) -> Kept | None:
        """The export, if it is there."""
        place = self.folder / wanted.name
        if not place.is_dir():
            return None
        paths = (path for path in place.rglob("*") if path.is_file() and path.name != MANIFEST)
        found, uses = _noted(self._note(wanted))
        return Kept(place, sorted(paths), found, uses)

    def work(self, wanted: Wanted) -> Work | None:
        """The export at work, or the last one that failed."""
        return self._works.get(wanted)

    def make(self, wanted: Wanted) -> Work | None:
        """Begin to make an export, unless somebody did; None where it is there already.

        Raises UserError: run_not_found, artifact_not_found. All else becomes the failure of the work.
        """
        require_artifact(self._store, wanted.run_id, wanted.precision)
        with self._lock:
            work = self._works.get(wanted)
            if work and not work.ended.is_set():
                return work
            if (self.folder / wanted.name).is_dir():
                return None
            if not self._is_busy():
                sweep(self.folder)
            work = self._works[wanted] = Work()
        threading.Thread(target=self._run, args=(wanted, work), daemon=True).start()
        return work

    def cancel(self, wanted: Wanted) -> None:
        """Stop an export that is being made, if it is."""
        if work := self.work(wanted):
            work.cancel()

    def delete(self, wanted: Wanted) -> None:
        """Remove an export that is there."""
        with self._lock:
            remove_dir(self.folder / wanted.name)
            self._note(wanted).unlink(missing_ok=True)

    def stop(self) -> None:
        """Cancel all that is being made, and wait for its end."""
        works = list(self._works.values())
        for work in works:
            work.cancel()
        for work in works:
            work.ended.wait(STOP_S)

    def _is_busy(self) -> bool:
        return any(not work.ended.is_set() for work in self._works.values())

    def _note(self, wanted: Wanted) -> Path:
        """The file that says what the comparison found and how the export is used."""
        return self.folder / f"{wanted.name}.json"

    def _run(self, wanted: Wanted, work: Work) -> None:
        try:
            while not self._turn.acquire(timeout=LOOK_S):
                work.tell(None)
            try:
                self._make(wanted, work)
            finally:
                self._turn.release()
        except Cancelled:
            pass
        except Exception as error:
            work.failure = _described(error)
        finally:
            with self._lock:
                if work.failure is None:
                    del self._works[wanted]
            work.ended.set()

    def _make(self, wanted: Wanted, work: Work) -> None:
        work.tell(0.0)
        model = model_of(self._store, wanted.run_id, wanted.precision)
        results = results_of(self._store, wanted.run_id, wanted.precision)
        made = export(model, wanted.format, self.folder / wanted.name, work.tell, results)
        note = {"found": made.found, "uses": [vars(use) for use in made.uses]}
        write_bytes_atomic(self._note(wanted), json.dumps(note).encode())


def _noted(path: Path) -> tuple[str, list[Use]]:
    """What a note says; nothing where it is missing or damaged."""
    try:
        note: Any = json.loads(path.read_text(encoding="utf-8"))
        return str(note["found"]), [Use(**use) for use in note["uses"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def _described(error: Exception) -> UserError:
    """An error as a person can act on it; the traceback goes to the app's output."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        found = f"The files could not be written: {error.strerror or error}."
        return UserError("cannot_write", found, "Free some space, then make them again.")
    _logger.error("an export failed", exc_info=error)
    return UserError(
        "internal_error",
        f"The export stopped at an error that this program did not expect ({type(error).__name__}).",
        "The output of the app ends with the details; please report them.",
    )
