"""The checks that ship with the models: their outcomes, where they were measured, and what was asked in them.

They were put to the shipped models by the commands that anybody has. What was asked of a published suite is kept as
well, so that a first visitor reads it without a network.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from upq.evaluation import Question
from upq.files import RESOURCES

FOLDER = RESOURCES / "demo"
FILE = "checks.json.gz"


def written(checks: list[dict[str, Any]], asked: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """Return what `read` reads; the same checks give the same bytes.

    checks: what upq.store.adopt takes for a check. asked: suite -> rows of key and prompt, or the fields of a Question.
    """
    text = json.dumps({"checks": checks, "asked": asked}, sort_keys=True, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read(folder: Path = FOLDER) -> dict[str, Any]:
    """Return the shipped checks, and what was asked in them; nothing of both where the file is not there."""
    path = folder / FILE
    if not path.is_file():
        return {"checks": [], "asked": {}}
    return json.loads(gzip.decompress(path.read_bytes()))


@lru_cache(maxsize=4)
def asked(suite: str, folder: Path = FOLDER) -> dict[Hashable, str | Question]:
    """Return what was asked of a published suite, by what names an item there: a part of the suite."""
    rows = read(folder)["asked"].get(suite, [])
    if suite != "mmlu":
        return {row["key"]: row["prompt"] for row in rows}
    questions = [Question(**{**row, "choices": tuple(row["choices"])}) for row in rows]
    return {(question.subject, question.key): question for question in questions}
