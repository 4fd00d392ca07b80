"""Training rows from anywhere: built-in prompts, a hub dataset, a local JSONL, Parquet or text file.

A row is either a conversation (with or without the final answer) or plain text. Nothing here knows of tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from upq.config import DataConfig
from upq.errors import UserError
from upq.files import RESOURCES

#: Longest row read from a file, in characters; longer ones are cut, not refused.
LONGEST_ROW = 200_000
TRAIN, HELD_OUT = "prompts_train.jsonl", "prompts_held_out.jsonl"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """Either messages ({"role", "content"} each; the last one may be the answer) or text."""

    messages: tuple[dict[str, str], ...] = ()
    text: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether the conversation ends with an assistant message."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"


def read_rows(config: DataConfig, seed: int) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows), disjoint; at most max_rows and held_out of them.

    Raises UserError: bad_dataset (with the columns found and those accepted), dataset_not_found, offline.
    """
    if config.source == "builtin":
        return _builtin(TRAIN)[: config.max_rows], _builtin(HELD_OUT)[: config.held_out]
    wanted = config.max_rows + config.held_out
    rows = list(islice(_mapped(_raw_rows(config), config), wanted))
    seen = list(dict.fromkeys(rows_key(row) for row in rows))
    unique = {rows_key(row): row for row in rows}
    rows = [unique[key] for key in seen]
    if len(rows) < config.held_out + 1:
        raise UserError(
            "bad_dataset",
            f"{config.path} has {len(rows)} different usable rows; expected more than the "
            f"{config.held_out} that are held out.",
            "Lower data.held_out or take a larger dataset.",
        )
    random.Random(seed).shuffle(rows)
    return rows[config.held_out :], rows[: config.held_out]


def built_in_rows() -> list[Row]:
    """All built-in prompts, those to train on and those to measure on."""
    return _builtin(TRAIN) + _builtin(HELD_OUT)


def rows_key(row: Row) -> str:
    """Text that identifies what the model is asked: rows with the same key never stand on both sides of a split."""
    asked = row.messages[:-1] if row.has_answer else row.messages
    return row.text or json.dumps(asked)


def _builtin(name: str) -> list[Row]:
    lines = (RESOURCES / name).read_text(encoding="utf-8").splitlines()
    return [
        Row(messages=({"role": "user", "content": json.loads(line)["prompt"]},)) for line in lines
    ]


def _raw_rows(config: DataConfig) -> Iterator[dict[str, Any]]:
    if config.source == "hub":
        return _hub_rows(config.path, config.split)
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise UserError("dataset_not_found", f"There is no file at {path}.", "Check data.path.")
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".parquet": _parquet_rows,
        ".txt": _text_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            "bad_dataset",
            f"{path.name} ends in {path.suffix or 'nothing'}; expected .jsonl, .parquet or .txt.",
        )
    return reader(path)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(
                    "bad_dataset", f"{path.name}, line {number} is not JSON: {error}."
                ) from error
            if not isinstance(row, dict):
                raise UserError("bad_dataset", f"{path.name}, line {number} is not a JSON object.")
            yield row


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    """One row a paragraph; paragraphs are gathered until they are worth a training sequence."""
    gathered: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                gathered.append(line.strip())
            if sum(map(len, gathered)) > 4000:
                yield {"text": "\n".join(gathered)}
                gathered = []
    if gathered:
        yield {"text": "\n".join(gathered)}


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # noqa: PLC0415  heavy, and only this kind of file needs it

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            "bad_dataset", f"{path.name} is not a readable Parquet file: {error}."
        ) from error


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets  # noqa: PLC0415  heavy, and only this source needs it
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        for row in datasets.load_dataset(name, split=split, streaming="[" not in split):
            yield dict(row)
    except (ConnectionError, HfHubHTTPError, OSError) as error:
        raise UserError(
            "offline",
            f"The dataset {name} could not be read from the hub: {str(error).splitlines()[0]}",
            "Check the id and the network, or give a local file.",
        ) from error
    except ValueError as error:
        raise UserError("bad_dataset", f"{name}: {str(error).splitlines()[0]}") from error


def _mapped(raw: Iterable[dict[str, Any]], config: DataConfig) -> Iterator[Row]:
    for number, values in enumerate(raw, 1):
        row = _map_row(values, config, number)
        if row.text.strip() or row.messages:
            yield row


def _map_row(values: dict[str, Any], config: DataConfig, number: int) -> Row:
    columns = config.text_column, config.messages_column, config.prompt_column
    if columns[0] or (
        columns[0] == columns[1] == "" and "text" in values and columns[2] not in values
    ):
        return Row(text=_text(values, config.text_column or "text", number))
    if config.messages_column:
        return Row(messages=_messages(values, config.messages_column, number))
    messages = [{"role": "user", "content": _text(values, config.prompt_column, number)}]
    if config.answer_column:
        answer = _text(values, config.answer_column, number)
        messages.append({"role": "assistant", "content": answer})
    return Row(messages=tuple(messages))


def _column(values: dict[str, Any], name: str, number: int) -> Any:
    if name not in values:
        raise UserError(
            "bad_dataset",
            f"Row {number} has no column {name!r}; it has {', '.join(map(str, values)) or 'none'}.",
            "Set data.prompt_column, data.answer_column, data.messages_column or data.text_column.",
        )
    return values[name]


def _text(values: dict[str, Any], name: str, number: int) -> str:
    value = _column(values, name, number)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(
            "bad_dataset", f"Row {number}, column {name!r} holds {kind}; expected text."
        )
    return value[:LONGEST_ROW]


def _messages(values: dict[str, Any], name: str, number: int) -> tuple[dict[str, str], ...]:
    messages = _column(values, name, number)
    if not isinstance(messages, list) or not all(
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise UserError(
            "bad_dataset",
            f"Row {number}, column {name!r} is not a list of messages with role (system, user, assistant) "
            "and content.",
        )
    return tuple(
        {"role": message["role"], "content": message["content"][:LONGEST_ROW]}
        for message in messages
    )
