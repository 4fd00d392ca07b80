"""Raw rows of a hub dataset or of a local JSONL, Parquet or text file, each with its place for messages.

A local file is looked at before it is opened, and read line by line, so that none can fill the memory or wait for ever.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from upq.errors import UserError
from upq.files import decoded, file_problem

#: (where it stands, such as "line 7", its columns)
RawRow = tuple[str, dict[str, Any]]
#: Largest file, 128 GiB: what is larger is no set of prompts. It is never in memory as a whole.
MOST_BYTES = 1 << 37
#: Longest line, 64 MiB, of which a row keeps far less.
LONGEST_LINE_BYTES = 1 << 26
#: Characters that are worth a training sequence; paragraphs of a text file are gathered until there are so many.
GATHERED = 4000
#: Rows of a Parquet file that are decoded at once.
PARQUET_ROWS = 256


def file_rows(name: str) -> Iterator[RawRow]:
    """The rows of a local file. Raises UserError: dataset_not_found, bad_dataset."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # "~somebody", who has no home here
        path = Path(name)
    if problem := file_problem(path, MOST_BYTES):
        code = "bad_dataset" if os.path.isfile(path) else "dataset_not_found"
        raise UserError(code, f"{path} {problem}; expected a dataset.", "Check data.path.")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            "bad_dataset",
            f"{path.name} ends in {path.suffix or 'nothing'}; expected .jsonl, .parquet or .txt.",
            "Convert it into one of these.",
        )
    return reader(path)


def hub_rows(name: str, split: str) -> Iterator[RawRow]:
    """The rows of a split of a hub dataset. Raises UserError: offline, bad_dataset."""
    import datasets  # noqa: PLC0415  heavy, and only this source needs it
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        rows = datasets.load_dataset(name, split=split, streaming="[" not in split)
        for number, row in enumerate(rows, 1):
            yield f"row {number}", dict(row)
    except (ConnectionError, HfHubHTTPError, OSError) as error:
        raise UserError(
            "offline",
            f"The dataset {name} could not be read from the hub: {str(error).splitlines()[0]}",
            "Check the id and the network, or give a local file.",
        ) from error
    except ValueError as error:
        raise UserError("bad_dataset", f"{name}: {str(error).splitlines()[0]}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if len(line) > LONGEST_LINE_BYTES:
                what = f"line {number} is longer than {LONGEST_LINE_BYTES} bytes"
                raise UserError("bad_dataset", f"{path.name}, {what}.", "Break it up.")
            try:
                text = decoded(line, number).strip()
            except ValueError as error:
                raise UserError(
                    "bad_dataset", f"{path.name}, {error}.", "Save the file as UTF-8."
                ) from error
            if text:
                yield number, text


def _json_rows(path: Path) -> Iterator[RawRow]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                "bad_dataset",
                f"{path.name}, line {number} is not JSON: {error}.",
                "Each line holds one JSON object.",
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                "bad_dataset",
                f"{path.name}, line {number} is not a JSON object.",
                "Each line holds one JSON object.",
            )
        yield f"line {number}", row


def _text_rows(path: Path) -> Iterator[RawRow]:
    gathered: list[str] = []
    first = 0
    for number, line in _lines(path):
        first = first if gathered else number
        gathered.append(line)
        if sum(map(len, gathered)) > GATHERED:
            yield f"line {first}", {"text": "\n".join(gathered)}
            gathered = []
    if gathered:
        yield f"line {first}", {"text": "\n".join(gathered)}


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow.parquet  # noqa: PLC0415  heavy, and only this kind of file needs it

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for at in range(batch.num_rows):
                    number += 1
                    [row] = batch.slice(at, 1).to_pylist()
                    yield f"row {number}", row
    except UnicodeDecodeError as error:
        raise UserError(
            "bad_dataset",
            f"{path.name}, row {number} holds text that is not UTF-8.",
            "Write the file again with texts in UTF-8.",
        ) from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(
            "bad_dataset",
            f"{path.name} is not a readable Parquet file: {error}.",
            "Write it again, or give a JSONL file.",
        ) from error


#: What reads a file with this ending.
READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
