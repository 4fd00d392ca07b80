"""Exports that are kept: made in the background, one after the other, each in a folder of its own; sent to the hub from
there; and whole runs as one file beside them.

Whoever asks for an export that is there gets it, and whoever asks for one that is being made waits for the same one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from upq.export import Use, export, format_named, publish
from upq.files import MANIFEST, remove_dir, sweep, write_bytes_atomic
from upq.jobs.background import Work, Works
from upq.jobs.exports import model_of, require_artifact, results_of
from upq.store import Store


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
    """An export that is there. found: what the comparison found; "" where that is not known any more.

    sent: the addresses of the models on the hub that it was sent to.
    """

    folder: Path
    files: list[Path]
    found: str
    uses: list[Use]
    sent: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class Sending:
    """An export on its way to the hub. repo: OWNER/NAME. private: whether a repository that is made now is.

    sender: which visitor sends it, on an app that is open to strangers. Raises UserError("bad_repo").
    """

    wanted: Wanted
    repo: str
    private: bool
    sender: str = ""

    def __post_init__(self) -> None:
        publish.require_repo(self.repo)


@dataclass(frozen=True)
class Packing:
    """A whole run that becomes one file."""

    run_id: int

    @property
    def name(self) -> str:
        """What the file is called."""
        return f"run-{self.run_id}.upq"


class Exports:
    """The exports in a folder, and those that are being made. All methods may be called from any thread."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._works = Works()

    def kept(self, wanted: Wanted) -> Kept | None:
        """The export, if it is there."""
        place = self.folder / wanted.name
        if not place.is_dir():
            return None
        paths = (path for path in place.rglob("*") if path.is_file() and path.name != MANIFEST)
        note = self._noted(wanted)
        return Kept(place, sorted(paths), note.found, note.uses, note.sent)

    def packed(self, packing: Packing) -> Path | None:
        """The file of a whole run, if it is there."""
        place = self.folder / packing.name
        return place if place.is_file() else None

    def work(self, wanted: Wanted | Packing) -> Work | None:
        """What is being made, or what failed last."""
        return self._works.get(wanted)

    def sendings(self, run_id: int, precision: str) -> dict[Sending, Work]:
        """What of a model is on its way to the hub, or did not arrive."""
        return {
            key: work
            for key, work in self._works.of(Sending).items()
            if (key.wanted.run_id, key.wanted.precision) == (run_id, precision)
        }

    def make(self, wanted: Wanted) -> Work | None:
        """Begin to make an export, unless somebody did; None where it is there already.

        Raises UserError: run_not_found, artifact_not_found. All else becomes the failure of the work.
        """
        require_artifact(self._store, wanted.run_id, wanted.precision)
        is_there = (self.folder / wanted.name).is_dir
        return self._works.begin(wanted, partial(self._make, wanted), is_there)

    def send(self, sending: Sending) -> Work | None:
        """Begin to send an export to the hub, made first where it is not there.

        Raises UserError: run_not_found, artifact_not_found. All else becomes the failure of the work.
        """
        require_artifact(self._store, sending.wanted.run_id, sending.wanted.precision)
        return self._works.begin(sending, partial(self._send, sending, self._token()))

    def pack(self, packing: Packing) -> Work | None:
        """Begin to write a whole run as one file; None where it is there already.

        Raises UserError("run_not_found"). All else becomes the failure of the work.
        """
        self._store.run(packing.run_id)
        is_there = (self.folder / packing.name).is_file
        return self._works.begin(packing, partial(self._pack, packing), is_there)

    def cancel(self, wanted: Wanted) -> None:
        """Stop an export that is being made, if it is."""
        if work := self.work(wanted):
            work.cancel()

    def delete(self, wanted: Wanted | Packing) -> None:
        """Remove what is there."""
        if isinstance(wanted, Packing):
            (self.folder / wanted.name).unlink(missing_ok=True)
            return
        remove_dir(self.folder / wanted.name)
        self._note(wanted).unlink(missing_ok=True)

    def stop(self) -> None:
        """Cancel all that is being made, and wait for its end."""
        self._works.stop()

    def _note(self, wanted: Wanted) -> Path:
        """The file that says what the comparison found, how the export is used and where it was sent."""
        return self.folder / f"{wanted.name}.json"

    def _noted(self, wanted: Wanted) -> _Note:
        """What the note says; nothing where it is missing or damaged."""
        try:
            note: Any = json.loads(self._note(wanted).read_text(encoding="utf-8"))
            uses = [Use(**use) for use in note["uses"]]
            return _Note(str(note["found"]), uses, [str(place) for place in note.get("sent", [])])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _Note()

    def _write_note(self, wanted: Wanted, note: _Note) -> None:
        write_bytes_atomic(self._note(wanted), json.dumps(asdict(note)).encode())

    def _make(self, wanted: Wanted, work: Work) -> None:
        if (self.folder / wanted.name).is_dir():
            return
        work.tell(0.0)
        sweep(self.folder)
        model = model_of(self._store, wanted.run_id, wanted.precision)
        results = results_of(self._store, wanted.run_id, wanted.precision)
        made = export(model, wanted.format, self.folder / wanted.name, work.tell, results)
        self._write_note(wanted, _Note(made.found, made.uses))

    def _token(self) -> str | None:
        """With which token whoever asks sends to the hub; None for that of this machine."""
        return None

    def _send(self, sending: Sending, token: str | None, work: Work) -> None:
        work.tell(0.0)
        publish.require_login(token)
        self._make(sending.wanted, work)
        work.tell(1.0)
        folder = self.folder / sending.wanted.name
        self._sent(sending, publish.publish(folder, sending.repo, sending.private, token).address)

    def _sent(self, sending: Sending, address: str) -> None:
        """Keep where something was sent."""
        note = self._noted(sending.wanted)
        places = list(dict.fromkeys([*note.sent, address]))
        self._write_note(sending.wanted, replace(note, sent=places))

    def _pack(self, packing: Packing, work: Work) -> None:
        work.tell(0.0)
        self._store.pack(packing.run_id, self.folder / packing.name)


@dataclass(frozen=True)
class _Note:
    """What is known of an export beside its files."""

    found: str = ""
    uses: list[Use] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
