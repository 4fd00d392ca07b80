"""What a format has to say and to do, so that the app and the command line treat all of them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from upq.errors import UserError
from upq.export.model import PackedModel

#: Called between pieces of work of a second or two with the share that is done, 0 to 1; may raise to stop.
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Offer:
    """What a format would make of a model, said before any work.

    size_bytes: of all its files, within a percent. bits_per_weight: of the quantized linears. exactness: one line, how
    the exported weights relate to the artifact's.
    """

    size_bytes: int
    bits_per_weight: float
    exactness: str


@dataclass(frozen=True)
class Use:
    """How one program takes the files. command: a shell line, or code, to be copied; run in the folder of the files."""

    program: str
    command: str


class Format(Protocol):
    """One way out. key: how commands name it. title, runs_in: for people."""

    key: str
    title: str
    runs_in: str

    def offer(self, model: PackedModel) -> Offer:
        """What `write` would make. Raises UserError("cannot_export") with the reason where it can make nothing."""
        ...

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """Put the files into an empty folder. Raises UserError("cannot_export") as `offer` does."""
        ...

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Read the files back and compare every tensor with the artifact's own decoding; one line of what was found.

        Raises UserError("export_differs") with the first tensor that is not what it should be.
        """
        ...

    def uses(self, model: PackedModel) -> list[Use]:
        """What to type in each program."""
        ...


def cannot_export(reason: str, hint: str = "") -> UserError:
    """The error of a model that a format cannot hold."""
    return UserError("cannot_export", reason, hint)


def export_differs(message: str) -> UserError:
    """The error of files that are not what was to be written."""
    return UserError(
        "export_differs", message, "Nothing was left behind. Please report this with the run's log."
    )
