"""Making an export: written beside its place, read back, compared, and only then there under its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upq.errors import UserError, shown
from upq.export.dense import Dense
from upq.export.formats import Format, Progress, Use
from upq.export.gguf_format import Gguf
from upq.export.model import PackedModel
from upq.files import MANIFEST, commit_dir

#: Every format, in the order in which they are offered.
FORMATS: Sequence[Format] = (Gguf(), Dense())
#: How much of the work the writing is; the rest is the reading back.
WRITING = 0.6


@dataclass(frozen=True)
class Exported:
    """Files that hold what they should. found: one line of the comparison."""

    folder: Path
    files: list[Path]
    size_bytes: int
    found: str
    uses: list[Use]


def format_named(key: str) -> Format:
    """The format with this key. Raises UserError("bad_argument")."""
    for one in FORMATS:
        if one.key == key:
            return one
    known = ", ".join(one.key for one in FORMATS)
    raise UserError("bad_argument", f"format is {shown(key)}; expected one of {known}.")


def export(
    model: PackedModel, key: str, folder: Path, progress: Progress = lambda _: None
) -> Exported:
    """Write a model in a format into a folder that is absent or empty; it appears when its files have been read back.

    Raises UserError: bad_argument, cannot_export, export_differs, cannot_write; and what `progress` raises to stop. In
    all these cases nothing is left behind.
    """
    one = format_named(key)
    one.offer(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            "cannot_write",
            f"{folder} exists and is not an empty folder.",
            "Choose another one, or empty it.",
        )
    found = ""

    def write(staging: Path) -> None:
        nonlocal found
        one.write(model, staging, lambda share: progress(WRITING * share))
        found = one.check(model, staging, lambda share: progress(WRITING + (1 - WRITING) * share))

    try:
        commit_dir(folder, write)
    except OSError as error:
        raise UserError(
            "cannot_write",
            f"The files could not be written: {error.strerror or error}.",
            "Free some space, or choose another folder.",
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    size = sum(path.stat().st_size for path in files)
    return Exported(folder, files, size, found, one.uses(model))
