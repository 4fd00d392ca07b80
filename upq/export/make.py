"""Making an export: written beside its place, read back, compared, and only then there under its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from upq.errors import UserError, shown
from upq.export.card import Results, card
from upq.export.compressed import CompressedTensors
from upq.export.dense import Dense
from upq.export.formats import Format, Progress, Use
from upq.export.gguf_format import Gguf
from upq.export.mlx import Mlx
from upq.export.model import PackedModel
from upq.export.origin import CARD
from upq.export.packed import Packed
from upq.files import MANIFEST, commit_dir

#: Every format, in the order in which they are offered.
FORMATS: Sequence[Format] = (
    Gguf(),
    Mlx("mlx", "MLX", torch.float16),
    Mlx("mlx-fp32", "MLX, scales in 32 bits", torch.float32),
    CompressedTensors(),
    Packed(),
    Dense(),
)
#: How much of the work the writing is; the rest is the reading back.
WRITING = 0.6


@dataclass(frozen=True)
class Exported:
    """Files that hold what they should, and beside them their model card. found: one line of the comparison."""

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
    found = f"format is {shown(key)}" if key else "No format is named"
    raise UserError("bad_argument", f"{found}; expected one of {known}.")


def export(
    model: PackedModel,
    key: str,
    folder: Path,
    progress: Progress = lambda _: None,
    results: Results | None = None,
) -> Exported:
    """Write a model in a format into a folder that is absent or empty; it appears when its files have been read back.

    results: what its card tells of the run. Raises UserError: bad_argument, cannot_export, export_differs,
    cannot_write; and what `progress` raises to stop. In all these cases nothing is left behind.
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
        text = card(model, one, found, _size(_files(staging)), results or Results())
        (staging / CARD).write_text(text, encoding="utf-8")

    try:
        commit_dir(folder, write)
    except (OSError, SafetensorError) as error:
        raise UserError(
            "cannot_write",
            f"The files could not be written: {_reason(error)}.",
            "Free some space, or choose another folder.",
        ) from error
    files = _files(folder)
    return Exported(folder, files, _size(files), found, one.uses(model))


def _reason(error: Exception) -> str:
    """What the system says; numpy says only how many numbers it did not get rid of."""
    if isinstance(error, OSError):
        return error.strerror or "only a part of them fitted"
    return str(error)


def _files(folder: Path) -> list[Path]:
    """What the format wrote."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if path.name not in (MANIFEST, CARD))


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)
