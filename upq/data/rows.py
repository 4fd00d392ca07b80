"""Training rows from anywhere: built-in prompts, a hub dataset, a local JSONL, Parquet or text file.

A row is either a conversation (with or without the final answer) or plain text. Nothing here knows of tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from upq.config import DataConfig
from upq.data.readers import RawRow, file_rows, hub_rows
from upq.errors import UserError
from upq.files import RESOURCES, clean_text, is_whole

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


def read_rows(
    config: DataConfig, seed: int, log: Callable[[str], None] = lambda _: None
) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows), disjoint; at most max_rows and held_out of them.

    Rows that ask nothing are left out, and `log` is told how many. Raises UserError: bad_dataset (with the line, or
    with the columns found and those accepted), dataset_not_found, offline.
    """
    if config.source == "builtin":
        return _builtin(TRAIN)[: config.max_rows], _builtin(HELD_OUT)[: config.held_out]
    raw = hub_rows(config.path, config.split) if config.source == "hub" else file_rows(config.path)
    rows, blank = _mapped(raw, config)
    if blank:
        log(f"data: {blank} rows of {config.path} are blank or have a blank message; left out")
    seen = list(dict.fromkeys(rows_key(row) for row in rows))
    unique = {rows_key(row): row for row in rows}
    rows = [unique[key] for key in seen]
    if len(rows) < config.held_out + 1:
        raise UserError(
            "bad_dataset",
            f"{config.path} has {len(rows)} different usable rows{f' and {blank} blank ones' if blank else ''}; "
            f"expected more than the {config.held_out} that are held out.",
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


def _mapped(raw: Iterable[RawRow], config: DataConfig) -> tuple[list[Row], int]:
    """(as many rows as the config wants, how many before them ask nothing)"""
    rows: list[Row] = []
    blank = 0
    for place, values in raw:
        row = _map_row(values, config, place)
        if _is_blank(row):
            blank += 1
            continue
        rows.append(row)
        if len(rows) == config.max_rows + config.held_out:
            break
    return rows, blank


def _is_blank(row: Row) -> bool:
    """Whether there is no text, nobody who asks, or a message of spaces."""
    contents = [message["content"] for message in row.messages] or [row.text]
    asked = bool(row.text) or any(message["role"] == "user" for message in row.messages)
    return not asked or not all(content.strip() for content in contents)


def _map_row(values: dict[str, Any], config: DataConfig, place: str) -> Row:
    columns = config.text_column, config.messages_column, config.prompt_column
    if columns[0] or (
        columns[0] == columns[1] == "" and "text" in values and columns[2] not in values
    ):
        return Row(text=_text(values, config.text_column or "text", place))
    if config.messages_column:
        return Row(messages=_messages(values, config.messages_column, place))
    messages = [{"role": "user", "content": _text(values, config.prompt_column, place)}]
    if config.answer_column:
        answer = _text(values, config.answer_column, place)
        messages.append({"role": "assistant", "content": answer})
    return Row(messages=tuple(messages))


def _column(values: dict[str, Any], name: str, place: str) -> Any:
    if name not in values:
        raise UserError(
            "bad_dataset",
            f"The dataset's {place} has no column {name!r}; it has {_names(values)}.",
            "Set data.prompt_column, data.answer_column, data.messages_column or data.text_column.",
        )
    return values[name]


def _names(values: dict[str, Any]) -> str:
    return ", ".join(clean_text(str(name)) for name in values) or "none"


def _text(values: dict[str, Any], name: str, place: str) -> str:
    value = _column(values, name, place)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(
            "bad_dataset", f"The dataset's {place}, column {name!r} holds {kind}; expected text."
        )
    return _whole(value, name, place)


def _whole(text: str, name: str, place: str) -> str:
    """The text, cut to LONGEST_ROW."""
    if not is_whole(text):
        raise UserError(
            "bad_dataset",
            f"The dataset's {place}, column {name!r} holds half of a character (a lone surrogate, such as \\ud83d).",
            "Mend or remove the row; a text was probably cut in the middle of an emoji.",
        )
    return text[:LONGEST_ROW]


def _messages(values: dict[str, Any], name: str, place: str) -> tuple[dict[str, str], ...]:
    messages = _column(values, name, place)
    if not isinstance(messages, list) or not all(
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        for message in messages
    ):
        raise UserError(
            "bad_dataset",
            f"The dataset's {place}, column {name!r} is not a list of messages with role (system, user, assistant) "
            "and content.",
        )
    return tuple(
        {"role": message["role"], "content": _whole(message["content"], name, place)}
        for message in messages
    )
