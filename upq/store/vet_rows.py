"""Refuses rows of a run from elsewhere that no run of ours has: pages, charts and loaders would trip over them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from upq.artifact.format import FORMAT_VERSIONS
from upq.config import PRECISIONS, QUANTIZED, CheckConfig, RunConfig
from upq.errors import UserError, shown
from upq.files import clean_text, is_whole
from upq.store.run_rows import Row, RunRows

#: Bytes of an element of each type that a tensor may have.
ELEMENT_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
}
#: The last moment that a date may name, in the year 2242, and the longest time, seconds.
LAST_SECOND = 2.0**33
TIMES = {"created_at", "started_at", "ended_at", "at", "at_s", "worked_s"}
MADE = [precision.name for precision in QUANTIZED]

#: A shape of JSON: a type; a tuple of shapes, one of which fits; a dict with the keys that must be there, or
#: {str: shape} for any keys; [shape].
_Shape = type | tuple[Any, ...] | dict[Any, Any] | list[Any]
_NUMBER = (int, float)
_NUMBER_OR_NONE, _TEXT_OR_NONE = (*_NUMBER, type(None)), (str, type(None))
_STAGES: _Shape = {str: {"started": _NUMBER, "ended": _NUMBER_OR_NONE}}
_ENVIRONMENTS: _Shape = [
    {
        "commit": str,
        "versions": {"upq": str},
        "machine": {
            "processor": str,
            "cores": int,
            "instructions": str,
            "memory_bytes": int,
            "gpu": _TEXT_OR_NONE,
            "gpu_bytes": _NUMBER_OR_NONE,
        },
    }
]
_MANIFEST: _Shape = {
    "format_version": int,
    "config": dict,
    "bits_per_weight": _NUMBER,
    "layers": {str: dict},
    "base_model": {"name": str, "source": str, "reference_note": str},
}
_JUDGED: dict[str, Any] = {
    "key": int,
    "response": str,
    "verdicts": [
        {
            "instruction_id": str,
            "strict": (bool, type(None)),
            "loose": (bool, type(None)),
            "reason": str,
        }
    ],
}
_ENDED: _Shape = {**_JUDGED, "ending": {"finish": str, "tokens": int, "repeats": bool}}
#: Suite -> what is stored of an item: the fields of upq.evaluation.scores.KINDS, no others. How an answer ended was not
#: always kept.
_OUTCOMES: dict[str, _Shape] = {
    "builtin": (_JUDGED, _ENDED),
    "ifeval": (_JUDGED, _ENDED),
    "mmlu": {"key": int, "subject": str, "answer": int, "scores": [_NUMBER]},
    "wikitext2": {"nll": _NUMBER, "tokens": int},
}


def vet_run(rows: RunRows) -> None:
    """Raises ValueError in words, naming the table and the column."""
    run = rows.run
    _vet_values("runs", run)
    if run["state"] != "done" or None in (run["started_at"], run["ended_at"]):
        raise ValueError("its run is not finished")
    config = _config(run)
    _json(run["stages"], _STAGES, "stages of runs")
    _json(run["environments"], _ENVIRONMENTS, "environments of runs")
    for table, reports in rows.reports.items():
        for report in reports:
            _vet_values(table, report)
    for row in rows.reports["measurements"]:
        _vet_precision(row["precision"])
        _json(row["extra"], {}, "extra of measurements")
    for row in rows.reports["check_results"]:
        _vet_precision(row["precision"])
        if not isinstance(config, CheckConfig):
            raise ValueError("a run that is no check has outcomes of one")
        _json(row["result"], _OUTCOMES[config.suite], "result of check_results", exact=True)
    for artifact, contents in rows.artifacts:
        _vet_artifact(artifact, contents, rows.blobs)


def _vet_values(table: str, row: Row) -> None:
    for name, value in row.items():
        is_bad = (
            (isinstance(value, str) and clean_text(value) != value)
            or (isinstance(value, float) and not math.isfinite(value))
            or (name in TIMES and value is not None and not _is_time(value))
        )
        if is_bad:
            raise ValueError(f"{name} of {table} is {shown(value)}")


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= LAST_SECOND


def _vet_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"it has a precision {shown(precision)}")


def _config(run: Row) -> RunConfig | CheckConfig:
    values = _json(run["config"], {}, "config of runs")
    kind = CheckConfig if run["kind"] == "check" else RunConfig
    try:
        return kind.from_values(values)
    except (UserError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config of runs cannot be read: {error}") from error


def _vet_artifact(artifact: Row, contents: dict[str, list[Row]], blobs: Mapping[str, int]) -> None:
    _vet_values("artifacts", artifact)
    if artifact["precision"] not in MADE:
        raise ValueError(f"it has an artifact of {shown(artifact['precision'])}")
    manifest = _json(artifact["manifest"], _MANIFEST, "manifest of artifacts")
    if manifest["format_version"] not in FORMAT_VERSIONS:
        raise ValueError(
            f"its artifact has format {manifest['format_version']}, and this program reads"
            f" {FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}"
        )
    for row in contents["artifact_tensors"]:
        _vet_values("artifact_tensors", row)
        shape = _json(row["shape"], [int], "shape of artifact_tensors")
        size = ELEMENT_BYTES.get(row["dtype"])
        if size is None or min(shape, default=1) < 0:
            raise ValueError(f"{row['name']} is {shown(row['dtype'])} of shape {shown(shape)}")
        _vet_size(row, blobs, math.prod(shape) * size)
    for row in contents["artifact_files"]:
        _vet_values("artifact_files", row)
        if not _is_safe(row["name"]):
            raise ValueError(f"it holds a file with an unsafe name, {shown(row['name'])}")
        _vet_size(row, blobs, max(0, blobs.get(row["blob_digest"], 0)))


def _vet_size(row: Row, blobs: Mapping[str, int], expected: int) -> None:
    found = blobs.get(row["blob_digest"])
    if found != expected:
        raise ValueError(f"{row['name']} has {found} bytes; expected {expected}")


def _is_safe(name: str) -> bool:
    """Whether a file of this name stays in its folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and all(re.fullmatch(r"\w[\w .-]*", part) for part in parts)


def _json(text: str, shape: _Shape, where: str, *, exact: bool = False) -> Any:
    """The value of a JSON text of this shape, with whole characters and no NaN. exact: objects have no other keys."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        is_good = is_whole(json.dumps(value, ensure_ascii=False)) and _fits(value, shape, exact)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not is_good:
        raise ValueError(f"{where} is not what a run writes there")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant}")


def _fits(value: Any, shape: _Shape, exact: bool) -> bool:
    if isinstance(shape, tuple):
        return any(_fits(value, one, exact) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(one, shape[0], exact) for one in value)
    if not isinstance(shape, dict):
        return isinstance(value, shape)
    if not isinstance(value, dict) or (exact and value.keys() != shape.keys()):
        return False
    if str in shape:
        return all(_fits(one, shape[str], exact) for one in value.values())
    return all(name in value and _fits(value[name], one, exact) for name, one in shape.items())
