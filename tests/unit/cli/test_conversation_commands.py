"""Conversations on the command line: found, taken along, deleted after a question."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.conversations import content, exchange
from ui import conversation as page_of_one
from upq.__main__ import main
from upq.store import open_store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = open_store(tmp_path)
    store.conversations.save(content(exchange("Why is the sky blue?", answer="Rayleigh <b>")))
    store.conversations.save(content(exchange("What is 2 + 2?"), run_id=None))
    store.close()
    return tmp_path


def call(folder: Path, *arguments: str) -> int:
    return main(["--data-dir", str(folder), "conversations", *arguments])


def test_the_list_is_newest_first_and_can_be_searched(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder) == 0
    *_, first, second = capsys.readouterr().out.splitlines()
    assert "bundled model" in first
    assert second.split()[0] == "1"
    call(folder, "--search", "RAYLEIGH")
    out = capsys.readouterr().out
    assert "sky blue" in out
    assert "2 + 2" not in out
    call(folder, "--search", "nothing like it")
    assert capsys.readouterr().out == "No conversation holds 'nothing like it'.\n"


def test_a_conversation_is_written_as_markdown_and_as_lines(folder: Path) -> None:
    assert call(folder, "--export", str(folder / "out.md"), "1") == 0
    assert "Rayleigh <b>" in (folder / "out.md").read_text(encoding="utf-8")
    assert call(folder, "--export", str(folder / "out.jsonl"), "1") == 0
    lines = (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["precision"] for line in lines] == ["FP16", "INT2"]


def test_the_interface_writes_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out.html"
    assert page_of_one.main(["1", "--out", str(out), "--data-dir", str(folder)]) == 0
    assert "Rayleigh &lt;b&gt;" in out.read_text(encoding="utf-8")
    assert page_of_one.main(["9", "--out", str(out), "--data-dir", str(folder)]) == 2
    assert "no conversation 9" in capsys.readouterr().err
    assert page_of_one.main(["1", "--out", str(folder), "--data-dir", str(folder)]) == 2
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_page_is_written_from_any_folder(folder: Path) -> None:
    command = [sys.executable, "-m", "upq", "--data-dir", str(folder), "conversations"]
    command += ["--export", "out.html", "1"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=240)
    assert "Rayleigh" in (folder / "out.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--export", "out.pdf", "1"], "expected .md, .jsonl or .html"),
        (["--export", "out.md", "one"], "expected its number"),
        (["--export", "out.md", "9"], "no conversation 9"),
        (["--export", "/proc/nowhere/out.md", "1"], "could not be written"),
        (["--delete", "9"], "no conversation 9"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    folder: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, *arguments) == 2
    assert words in capsys.readouterr().err


def test_delete_asks_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for typed in ("", "no\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert call(folder, "--delete", "1") == 1
        assert "Nothing is deleted." in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert call(folder, "--delete", "1") == 0
    assert call(folder, "--delete", "2", "--yes") == 0
    capsys.readouterr()
    assert call(folder) == 0
    assert capsys.readouterr().out == "No conversations yet.\n"
