"""No packed file from elsewhere does harm: whatever it holds, it is refused in one sentence, and nothing is left."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.packed_cases import finished, refused
from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed run; damage a copy."""
    folder = tmp_path_factory.mktemp("packed")
    store = Store(folder / "upq.db")
    store.pack(finished(store), folder / "run.upq")
    store.close()
    return folder / "run.upq"


def changed(packed: Path, path: Path, *statements: str) -> Path:
    """A copy in which SQL changed something, checks of the schema aside."""
    shutil.copyfile(packed, path)
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA writable_schema = ON")
    raw.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        raw.execute(statement)
    raw.close()
    return path


#: What is wrong -> statements that make it so, and a word of the refusal.
DAMAGE: dict[str, tuple[list[str], str]] = {
    "a trigger": (
        ["CREATE TRIGGER evil AFTER INSERT ON runs BEGIN DELETE FROM runs; END"],
        "tables are not those",
    ),
    "a view in the place of a table": (
        [
            "DROP TABLE log",
            "CREATE VIEW log AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            " SELECT i AS id, 1 AS run_id, 0.0 AS at, 'x' AS line FROM n",
        ],
        "tables are not those",
    ),
    "a missing table": (["DROP TABLE metrics"], "tables are not those"),
    "a table too many": (["CREATE TABLE extra (x)"], "tables are not those"),
    "a virtual table": (["CREATE VIRTUAL TABLE words USING fts5(x)"], "tables are not those"),
    "a column with a rule": (
        ["ALTER TABLE log ADD COLUMN more TEXT GENERATED ALWAYS AS (hex(line)) VIRTUAL"],
        "tables are not those",
    ),
    "no run": (["DELETE FROM runs"], "one run with its checks"),
    "two runs": (["UPDATE runs SET kind = 'quantize'"], "one run with its checks"),
    "a run that goes on": (
        ["UPDATE runs SET state = 'queued' WHERE kind = 'quantize'"],
        "not finished",
    ),
    "a run without an end": (["UPDATE runs SET ended_at = NULL"], "not finished"),
    "a date beyond calendars": (["UPDATE runs SET created_at = 1e300"], "created_at of runs"),
    "a number without end": (["UPDATE metrics SET value = 9e999"], "value of metrics is inf"),
    "text that is none": (["UPDATE runs SET name = CAST(x'ff' AS TEXT)"], "decode"),
    "text with controls": (["UPDATE log SET line = 'a' || char(27)"], "line of log"),
    "a config of something else": (["UPDATE runs SET config = '[]'"], "config of runs"),
    "a config without end": (
        ["UPDATE runs SET config = replace(hex(zeroblob(50000)), '0', '[')"],
        "config of runs cannot be read",
    ),
    "a setting out of range": (
        ["""UPDATE runs SET config = '{"seed": -1}' WHERE kind = 'quantize'"""],
        "config of runs cannot be read",
    ),
    "stages of something else": (["""UPDATE runs SET stages = '{"a": 1}'"""], "stages of runs"),
    "half a character": (
        [r"""UPDATE measurements SET extra = '{"a": "\ud800"}'"""],
        "extra of measurements",
    ),
    "no number": (["""UPDATE measurements SET extra = '{"a": NaN}'"""], "it has NaN"),
    "an unknown precision": (["UPDATE check_results SET precision = 'INT3'"], "INT3"),
    "an outcome of something else": (
        ["""UPDATE check_results SET result = '{"key": 1}'"""],
        "result of check_results",
    ),
    "an ending of something else": (
        ["""UPDATE check_results SET result = json_set(result, '$.ending.tokens', 'many')"""],
        "result of check_results",
    ),
    "a type that torch has not": (["UPDATE artifact_tensors SET dtype = 'load'"], "'load'"),
    "a shape of something else": (["UPDATE artifact_tensors SET shape = '[9]'"], "expected 72"),
    "a shape below zero": (["UPDATE artifact_tensors SET shape = '[-1]'"], "[-1]"),
    "a file elsewhere": (
        ["UPDATE artifact_files SET name = '../../evil' WHERE name = 'config.json'"],
        "unsafe name",
    ),
    "a hidden file": (
        ["UPDATE artifact_files SET name = '.git' WHERE name = 'config.json'"],
        "unsafe name",
    ),
    "a manifest of something else": (
        ["UPDATE artifacts SET manifest = '{}'"],
        "manifest of artifacts",
    ),
    "a format of the future": (
        ["""UPDATE artifacts SET manifest = json_set(manifest, '$.format_version', 99)"""],
        "format 99",
    ),
    "an absurd size": (["UPDATE blobs SET size_bytes = 1 << 60"], "expected"),
    "an absurd file": (
        [
            "UPDATE blobs SET size_bytes = 1 << 60 WHERE digest IN"
            " (SELECT blob_digest FROM artifact_files WHERE name = 'config.json')"
        ],
        "part 1 of 68719476736",
    ),
    "a flipped bit": (["UPDATE parts SET data = zeroblob(length(data))"], "is damaged"),
    "a missing part": (["DELETE FROM parts"], "is missing"),
    "a missing blob": (["DELETE FROM blobs"], "has None bytes"),
    "exchanged parts": (
        ["UPDATE parts SET data = x'00', sha256 = '" + "0" * 64 + "' WHERE length(data) = 200"],
        "is damaged",
    ),
    "an artifact of 16 bits": (
        ["UPDATE artifacts SET precision = 'FP16' WHERE precision = 'INT4'"],
        "FP16",
    ),
    "a version below all": (["PRAGMA user_version = 0"], "version 0"),
    "an older version than its tables": (["PRAGMA user_version = 2"], "tables are not those"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_file_that_no_run_leaves_is_refused_in_one_sentence(
    what: str, packed: Path, store: Store, tmp_path: Path
) -> None:
    statements, word = DAMAGE[what]
    error = refused(store, changed(packed, tmp_path / "changed.upq", *statements))
    assert error.code == "pack_damaged"
    assert word in error.message


def test_what_is_no_packed_run_is_told_from_a_damaged_one(
    packed: Path, store: Store, tmp_path: Path
) -> None:
    content = packed.read_bytes()
    cases: dict[str, tuple[Callable[[Path], object], str, str]] = {
        "gone": (lambda path: None, "not_a_pack", "does not exist"),
        "folder": (lambda path: path.mkdir(), "not_a_pack", "is a folder"),
        "pipe": (lambda path: os.mkfifo(path), "not_a_pack", "a pipe"),
        "empty": (lambda path: path.touch(), "not_a_pack", "is empty"),
        "text": (lambda path: path.write_text("hello" * 99), "not_a_pack", "another kind"),
        "short": (lambda path: path.write_bytes(content[:50]), "not_a_pack", "another kind"),
        "cut": (lambda path: path.write_bytes(content[: len(content) // 2]), "pack_damaged", ""),
        "database": (
            lambda path: shutil.copyfile(tmp_path / "upq.db", path),
            "not_a_pack",
            "another kind",
        ),
    }
    store.enqueue(RunConfig())
    for name, (make, code, word) in cases.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        make(path)
        error = refused(store, path)
        assert (error.code, word in error.message) == (code, True), (name, error.message)


#: Depth and width of a tree of pages in which a walk would never end: 100^16 leaves, all of them the same page.
LEVELS, POINTERS = 16, 100


def inner_page(size: int, children: list[int]) -> bytearray:
    """An inner page of a table in SQLite's format, with these children and rising keys."""
    page, start = bytearray(size), size
    for place, child in enumerate(children[:-1]):
        start -= 5
        page[start : start + 5] = child.to_bytes(4, "big") + bytes([place + 1])
        page[12 + 2 * place : 14 + 2 * place] = start.to_bytes(2, "big")
    count = len(children) - 1
    page[:12] = b"".join(
        [b"\5\0\0", count.to_bytes(2, "big"), start.to_bytes(2, "big"), b"\0"]
    ) + children[-1].to_bytes(4, "big")
    return page


def test_pages_that_refer_to_each_other_without_end_are_refused(
    packed: Path, store: Store, tmp_path: Path
) -> None:
    """The list of tables gets, behind its own entries, a row that is allowed to repeat, and does so without end."""
    raw = sqlite3.connect(packed)
    (root,) = raw.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_blobs_1'"
    ).fetchone()
    raw.close()
    content = bytearray(packed.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    first = content[100:size]
    header = 12 if first[0] == 5 else 8
    cells = int.from_bytes(first[3:5], "big")
    whole = bytearray(size)  # the list of tables as it is, on a page of its own
    whole[: header + 2 * cells] = first[: header + 2 * cells]
    top = int.from_bytes(first[5:7], "big")
    whole[top:] = content[top:size]
    names = b"index", b"sqlite_autoindex_blobs_1", b"blobs"
    kinds = bytes([6, *(13 + 2 * len(name) for name in names), 1, 0])
    payload = kinds + b"".join(names) + bytes([root])
    row = bytes([len(payload), 127]) + payload
    leaf = bytearray(size)
    leaf[size - len(row) :] = row
    leaf[:10] = (
        b"\x0d\0\0\0\1"
        + (size - len(row)).to_bytes(2, "big")
        + b"\0"
        + (size - len(row)).to_bytes(2, "big")
    )
    next_page = len(content) // size + 1
    tree = [leaf]
    tree += [inner_page(size, [next_page + level] * POINTERS) for level in range(LEVELS)]
    last = next_page + len(tree)
    start = inner_page(size - 100, [last, last - 1])
    content[100:size] = start
    for place in (
        5,
        12,
    ):  # offsets count from the beginning of the page, before the header of the file
        offset = int.from_bytes(start[place : place + 2], "big") + 100
        content[100 + place : 102 + place] = offset.to_bytes(2, "big")
    content += b"".join(tree) + whole
    content[28:32] = (len(content) // size).to_bytes(4, "big")
    (tmp_path / "endless.upq").write_bytes(content)
    error = refused(store, tmp_path / "endless.upq")
    assert (error.code, "interrupted" in error.message) == ("pack_damaged", True)


def test_rows_that_repeat_without_end_are_refused(
    packed: Path, store: Store, tmp_path: Path
) -> None:
    raw = sqlite3.connect(packed)
    (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'log'").fetchone()
    raw.close()
    content = bytearray(packed.read_bytes())
    size = int.from_bytes(content[16:18], "big")
    place = slice((root - 1) * size, root * size)
    first = len(content) // size + 1
    tree = [content[place]]
    tree += [inner_page(size, [first + level] * POINTERS) for level in range(LEVELS)]
    content[place] = inner_page(size, [first + LEVELS] * POINTERS)
    content += b"".join(tree)
    content[28:32] = (len(content) // size).to_bytes(4, "big")
    (tmp_path / "endless.upq").write_bytes(content)
    assert "in database main" in refused(store, tmp_path / "endless.upq").message


@settings(max_examples=120)
@given(
    place=st.integers(0, 2**31),
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 2**31)),
)
@example(place=0, flips=[(18, 2), (19, 2)], cut=None)  # a journal that it has not
def test_no_damaged_byte_does_more_than_a_sentence(
    packed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    flips: list[tuple[int, int]],
    cut: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    content = bytearray(packed.read_bytes())
    for offset, value in flips:
        content[(place + offset % 4096) % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    (folder / "run.upq").write_bytes(content)
    store = Store(folder / "upq.db")
    codes = []
    try:
        moved = store.unpack(folder / "run.upq")
        for precision in moved.precisions:
            store.load_artifact(moved.run_id, precision)
    except UserError as error:
        codes.append(error.code)
    assert set(codes) <= {"not_a_pack", "pack_damaged", "newer_database"}
    assert len(store.runs()) == (0 if codes else 2)
    assert store.doctor() == []
    assert {name for name in os.listdir(folder) if "upq.db" not in name} == {"run.upq"}
    store.close()
    shutil.rmtree(folder)
