"""Where the data of an evaluation comes from: a file on this machine, else the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from upq.errors import UserError
from upq.files import decoded, file_problem

#: Environment variable: a folder with local copies of evaluation data.
FOLDER = "UPQ_DATA"
#: Suite -> the files that its local copy consists of; the first one stands for all.
FILES = {
    "ifeval": ("ifeval_input_data.jsonl",),
    "mmlu": ("mmlu_test.jsonl", "mmlu_dev.jsonl"),
    "wikitext2": ("wikitext2_test.txt",),
}

#: Largest file, 256 MiB; the largest of the suites has 7 MB.
MOST_BYTES = 1 << 28


def local_copy(suite: str, folder: str | None = None) -> str | None:
    """The path of a suite's data in a folder, by default the one that UPQ_DATA names; None where it is not there."""
    where = folder or os.environ.get(FOLDER)
    names = FILES.get(suite, ())
    if not where or not names or not all(os.path.isfile(Path(where, name)) for name in names):
        return None
    return str(Path(where, names[0]).absolute())


def read_suite_file(path: Path) -> str:
    """The text of a local file. Raises UserError("bad_suite")."""
    if problem := file_problem(path, MOST_BYTES):
        message = f"The suite {path.name} {problem}; expected a text file."
        raise UserError("bad_suite", message, "Give a file that exists, in the suite's format.")
    try:
        return decoded(path.read_bytes())
    except ValueError as error:
        message = f"The suite {path.name}, {error}."
        raise UserError("bad_suite", message, "Save the file as UTF-8.") from error
    except OSError as error:
        message = f"The suite {path.name} cannot be read: {error.strerror}."
        raise UserError("bad_suite", message, "Give a file that exists.") from error


def hub_rows(dataset: str, split: str, subset: str | None = None) -> Any:
    """A data set's rows from the hub or its cache. Raises UserError("offline")."""
    from datasets import load_dataset  # noqa: PLC0415  heavy, and only the hub needs it

    try:
        return load_dataset(dataset, subset, split=split)
    except OSError as error:  # includes every connection error of the hub's client
        message = f"{dataset} could not be loaded from the Hugging Face hub."
        raise UserError("offline", message, "Go online, or give a local copy.") from error
