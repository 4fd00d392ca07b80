"""A run that is cut into calls: what a call says and how it ends."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from bench import gpu_training
from upq.jobs import Supervisor
from upq.training.distill import UNTIL


def test_the_second_worker_that_fails_at_its_start_ends_the_call_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('start\\n'); import nothing_of_this_name"
    failing = partial(Supervisor, command=[sys.executable, "-c", code])
    monkeypatch.setattr(gpu_training, "Supervisor", failing)
    monkeypatch.setenv(
        UNTIL, "0"
    )  # the call sets it, and what comes after this test is not to end with it
    folders = ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["gpu_training", *folders, "--seconds", "30"])
    with pytest.raises(SystemExit, match="2 workers failed at their start"):
        gpu_training.main()
    assert "No module named 'nothing_of_this_name'" in capsys.readouterr().out
    assert starts.read_text(encoding="utf-8") == "start\nstart\n"
