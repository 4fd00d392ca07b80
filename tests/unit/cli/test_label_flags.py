"""Names, notes and stars on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.lab import Lab
from upq.__main__ import main
from upq.cli.parser import STATES, parser
from upq.config import preset
from upq.store import RunState


def test_runs_are_labelled_by_show_and_found_by_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Lab(tmp_path)
    lab.done(preset("smoke", "rtn"), name="baseline")
    lab.done(preset("smoke", "upq"))
    lab.store.close()

    def said(*arguments: str, code: int = 0) -> str:
        assert (main(["--data-dir", str(tmp_path), *arguments]) or 0) == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    shown = said("show", "2", "--name", "second try", "--note", "seed 7\ntwo lines", "--star")
    assert "second try\nseed 7\ntwo lines\nstarred\n" in shown
    assert "second try" in said("show", "2"), "it is kept"
    for flags in (["--search", "#2 seven"], ["--starred", "--state", "failed"]):
        assert "No run fits." in said("list", *flags)
    for flags in (["--search", "UPQ try"], ["--name", "second"], ["--note", "two"], ["--starred"]):
        listed = said("list", *flags)
        assert "second try" in listed
        assert "baseline" not in listed
    assert "starred" not in said("show", "2", "--no-star", "--name", "")
    assert "at most 200" in said("show", "1", "--name", "n" * 201, code=2)
    assert "baseline" in said("list")


def test_a_run_is_named_when_it_is_started() -> None:
    options = parser().parse_args(["run", "--name", "mine", "--note", "why"])
    assert (options.name, options.note) == ("mine", "why")
    assert RunState.__args__ == STATES  # type: ignore[attr-defined]
