"""Rows from files: what is read, what is refused, and that nothing stands on both sides of the split."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from upq.config import DataConfig
from upq.data import read_rows
from upq.data.rows import LONGEST_ROW, Row, rows_key
from upq.errors import UserError


def local(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": "file", "path": str(path), "held_out": 1, **changes})


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def prompts(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {index}?"} for index in range(count)]


def test_the_built_in_prompts_are_never_in_both_files() -> None:
    train, held_out = read_rows(DataConfig(max_rows=10_000, held_out=1000), 0)
    assert len(train) > 400
    assert len(held_out) >= 32
    assert {rows_key(row) for row in train}.isdisjoint(map(rows_key, held_out))
    assert len({rows_key(row) for row in train}) == len(train)


def test_the_built_in_prompts_are_cut_to_what_is_asked_for() -> None:
    train, held_out = read_rows(DataConfig(max_rows=3, held_out=2), 0)
    assert (len(train), len(held_out)) == (3, 2)


def test_duplicate_prompts_of_a_file_never_stand_on_both_sides(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {index % 7}?", "answer": f"Answer {index}."} for index in range(40)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    for seed in range(5):
        train, held_out = read_rows(local(path, held_out=3, answer_column="answer"), seed)
        assert len(train) == 4
        assert len(held_out) == 3
        assert {rows_key(row) for row in train}.isdisjoint(map(rows_key, held_out))


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", prompts(20))
    assert read_rows(local(path), 4) == read_rows(local(path), 4)
    assert read_rows(local(path), 4) != read_rows(local(path), 5)


def test_no_more_rows_are_read_than_asked_for(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", prompts(20))
    path.write_text(path.read_text() + "\nnot JSON, but never read")
    train, held_out = read_rows(local(path, max_rows=10, held_out=2), 0)
    assert (len(train), len(held_out)) == (10, 2)


def test_messages_text_and_parquet_become_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write_rows(tmp_path / "chat.ndjson", [{"turns": turns}, {"turns": turns[:1] * 2}])
    train, held_out = read_rows(local(path, messages_column="turns"), 0)
    assert {row.has_answer for row in [*train, *held_out]} == {True, False}

    table = pyarrow.table({"body": ["One text.", "Another text.", "One text."]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    train, held_out = read_rows(local(tmp_path / "rows.parquet", text_column="body"), 0)
    assert {row.text for row in [*train, *held_out]} == {"One text.", "Another text."}

    (tmp_path / "book.txt").write_text("\n".join(f"{index} " * 900 for index in range(6)))
    train, held_out = read_rows(local(tmp_path / "book.txt"), 0)
    assert all(row.text and not row.messages for row in [*train, *held_out])


def test_empty_lines_empty_texts_and_endless_rows_do_no_harm(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": " "}, {"text": "a" * 300_000}])
    path.write_text(path.read_text() + '\n\n{"text": "b"}\n')
    train, held_out = read_rows(local(path), 0)
    assert sorted(len(row.text) for row in [*train, *held_out]) == [1, LONGEST_ROW]


def test_an_answer_is_not_part_of_what_identifies_a_row() -> None:
    asked = {"role": "user", "content": "Hi"}
    answered = Row(messages=(asked, {"role": "assistant", "content": "Hello"}))
    assert rows_key(answered) == rows_key(Row(messages=(asked,)))


# fmt: off
BAD_FILES: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "wrong suffix": ("rows.csv", "a,b", {}, "bad_dataset", "ends in .csv"),
    "no suffix": ("rows", "a", {}, "bad_dataset", "ends in nothing"),
    "not JSON": ("r.jsonl", '{"prompt": "a"}\nnope', {}, "bad_dataset", "line 2 is not JSON"),
    "nested": ("r.jsonl", "[" * 100_000, {}, "bad_dataset", "line 1 is not JSON"),
    "a list": ("r.jsonl", "[1]", {}, "bad_dataset", "line 1 is not a JSON object"),
    "no column": ("r.jsonl", '{"q": "a"}', {}, "bad_dataset", "no column 'prompt'; it has q"),
    "empty object": ("r.jsonl", "{}", {}, "bad_dataset", "it has none"),
    "a number": ("r.jsonl", '{"prompt": 3}', {}, "bad_dataset", "holds int; expected text"),
    "no answer": (
        "r.jsonl",
        '{"prompt": "a"}',
        {"answer_column": "answer"},
        "bad_dataset",
        "no column 'answer'",
    ),
    "empty file": ("r.jsonl", "", {}, "bad_dataset", "is empty"),
    "blank file": ("r.jsonl", "\n\n", {}, "bad_dataset", "has 0 different usable rows"),
    "a number of endless digits": (
        "r.jsonl", '{"prompt": 1' + "0" * 5000 + "}", {}, "bad_dataset", "line 1 is not JSON"
    ),
    "half an emoji": (
        "r.jsonl", '{"prompt": "a"}\n\n{"prompt": "\\ud83d"}', {}, "bad_dataset",
        "line 3, column 'prompt' holds half of a character",
    ),
    "half an emoji in a message": (
        "r.jsonl", '{"m": [{"role": "user", "content": "\\udc00"}]}', {"messages_column": "m"},
        "bad_dataset", "line 1, column 'm' holds half of a character",
    ),
    "only blank prompts": (
        "r.jsonl", '{"prompt": " "}\n' * 4, {}, "bad_dataset",
        "has 0 different usable rows and 4 blank ones",
    ),
    "too few rows": (
        "r.jsonl",
        '{"prompt": "a"}\n' * 9,
        {"held_out": 4},
        "bad_dataset",
        "has 1 different usable rows; expected more than the 4",
    ),
    "messages a text": (
        "r.jsonl",
        '{"m": "hello"}',
        {"messages_column": "m"},
        "bad_dataset",
        "column 'm' is not a list of messages",
    ),
    "messages of a robot": (
        "r.jsonl",
        '{"m": [{"role": "robot", "content": "a"}]}',
        {"messages_column": "m"},
        "bad_dataset",
        "column 'm' is not a list of messages",
    ),
    "messages without content": (
        "r.jsonl",
        '{"m": [{"role": "user"}]}',
        {"messages_column": "m"},
        "bad_dataset",
        "column 'm' is not a list of messages",
    ),
    "messages with parts": (
        "r.jsonl",
        '{"m": [{"role": "user", "content": ["a"]}]}',
        {"messages_column": "m"},
        "bad_dataset",
        "column 'm' is not a list of messages",
    ),
    "no Parquet": ("r.parquet", "hello", {}, "bad_dataset", "not a readable Parquet file"),
}
# fmt: on


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_words(name: str, tmp_path: Path) -> None:
    file, content, changes, code, words = BAD_FILES[name]
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_rows(local(path, **changes), 0)
    assert caught.value.code == code
    assert words in caught.value.message


@pytest.mark.parametrize(
    "name", ["gone.jsonl", "", "/dev/zero", "pipe.jsonl", "a" * 300, "nul\0", "~nobody-here/x.txt"]
)
def test_what_is_no_file_is_not_found_and_never_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError) as caught:
        read_rows(local(tmp_path / name), 0)
    assert caught.value.code == "dataset_not_found"


def test_a_hub_dataset_without_a_network_is_reported_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError) as caught:
        read_rows(DataConfig(source="hub", path="some/dataset"), 0)
    assert caught.value.code == "offline"
    assert caught.value.message.endswith("Couldn't reach the Hub")


def contents(path: Path, **changes: Any) -> list[str]:
    """What the rows of a file hold, in order."""
    train, held_out = read_rows(local(path, **changes), 0)
    rows = [*train, *held_out]
    return sorted(row.text or row.messages[0]["content"] for row in rows)


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(ending: str, tmp_path: Path) -> None:
    rows = {
        "jsonl": (b'{"prompt": "One?"}\n{"prompt": "Two?"}', ["One?", "Two?"]),
        "txt": (b"o" * 4001 + b"\n" + b"t" * 4001, ["o" * 4001, "t" * 4001]),
    }
    written, expected = rows[ending]
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + written)
    assert contents(path) == expected


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": "Gr\xfc\xdfe"}'.encode("latin-1"), "line 2, byte 0xFC"),
        ('{"prompt": "\u201equoted"}'.encode("cp1252"), "line 1, byte 0x84"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 1 begins like UTF-16"),
        (b'{"prompt": "a"}\n{"prompt": "\xed\xa0\xbd"}', "line 2, byte 0xED"),
        (b'{"prompt": "a\0"}', "line 1, a zero byte"),
    ],
    ids=["Latin-1", "Windows-1252", "UTF-16", "CESU", "zero"],
)
def test_text_that_is_not_utf_8_is_refused_with_its_line(
    content: bytes, words: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows(local(path), 0)
    assert caught.value.code == "bad_dataset"
    assert words in caught.value.message
    assert caught.value.hint == "Save the file as UTF-8."


def test_a_parquet_text_that_is_not_utf_8_is_refused_with_its_row(tmp_path: Path) -> None:
    texts = pyarrow.array([b"fine", "Gr\xfc\xdfe".encode("latin-1")], pyarrow.binary())
    table = pyarrow.table(
        {"prompt": pyarrow.Array.from_buffers(pyarrow.string(), 2, texts.buffers())}
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="row 2 holds text that is not UTF-8") as caught:
        read_rows(local(tmp_path / "rows.parquet"), 0)
    assert caught.value.code == "bad_dataset"


def test_rows_that_ask_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    lines: list[str] = []
    path = write_rows(tmp_path / "rows.jsonl", [*prompts(3), {"prompt": ""}, {"prompt": " \n"}])
    read_rows(local(path), 0, lines.append)
    assert contents(path) == ["Question 0?", "Question 1?", "Question 2?"]
    assert [line.split(" rows")[0] for line in lines] == ["data: 2"]

    user = {"role": "user", "content": "Hi"}
    blank = [[], [{**user, "content": " "}], [{"role": "system", "content": "Be kind."}]]
    turns = [[user], [{**user, "content": "Ho"}], *blank]
    path = write_rows(tmp_path / "chats.jsonl", [{"turns": messages} for messages in turns])
    read_rows(local(path, messages_column="turns"), 0, lines.append)
    assert contents(path, messages_column="turns") == ["Hi", "Ho"]
    assert lines[1].startswith("data: 3 rows of")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upq.data.readers.LONGEST_LINE_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n' + "a" * 200)
    with pytest.raises(UserError, match="line 2 is longer than 100 bytes"):
        read_rows(local(path), 0)
