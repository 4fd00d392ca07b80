"""What the command line answers without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import upq

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "gradio", "datasets", "accelerate")
#: Runs a command line, then tells which heavy libraries it imported; its exit code is the command's.
PROGRAM = f"""
import sys
from upq.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(*sorted({{*{HEAVY}}} & {{*sys.modules}}), file=sys.stderr)
print("exit code", code or 0, file=sys.stderr)
"""


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "--data-dir", str(folder), *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["run", "--help-settings"], 0),
        (["list"], 0),
        (["conversations"], 0),
        (["conversations", "--export", "out.pdf", "1"], 2),
        (["conversations", "--export", "out.md", "one"], 2),
        (["conversations", "--delete", "1", "--yes"], 2),
        (["votes"], 0),
        (["votes", "7"], 2),
        (["fly"], 2),
        (["run", "--preset", "instant"], 2),
        (["run", "--set", "int2.distill.tokens"], 2),
        (["run", "--set", "int2.distill.tokns=5"], 2),
        (["run", "--set", "seed=-1"], 2),
        (["show", "7"], 2),
        (["resume", "7"], 2),
        (["cancel", "7"], 2),
        (["chat", "7", "--precision", "int3"], 2),
        (["chat", "7"], 2),
        (["serve", "7"], 2),
        (["delete", "7"], 2),
        (["check", "7", "--precision", "int3"], 2),
        (["check", "7", "--suite", "arc"], 2),
        (["eval", "7", "--tasks", "arc"], 2),
        (["export", "7", "--format", "gguf"], 2),
        (["push", "7", "--format", "gguf", "--repo", "a/b"], 2),
        (["pack", "7", "out.upq"], 2),
        (["unpack", "nowhere.upq"], 2),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_nothing_heavy_is_imported_to_answer(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    done = called(tmp_path, *arguments)
    *_, imported, ending = done.stderr.splitlines()
    assert (imported, ending) == ("", f"exit code {code}"), done.stderr


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert called(tmp_path, "--version").stdout == f"UPQ Studio {upq.__version__}\n"


def test_a_reader_that_has_enough_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "upq", "--data-dir", str(tmp_path), "run"]
    line = " ".join(
        [*command, "--help-settings", "|", "true"]
    )  # has ended before anything is written
    done = subprocess.run(
        line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_python_without_the_packages_is_told_in_one_sentence() -> None:
    command = [sys.executable, "-S", "-m", "upq", "list"]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("Not installed: ")
    assert "make install" in sentence
