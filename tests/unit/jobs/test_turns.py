"""Background programs take turns on the cores, and let answers go first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from upq.jobs import turns
from upq.jobs.turns import Turns, answering, is_busy

#: A program that works in pieces, from the first line that it reads, and writes when each began and ended. It imports
#: nothing else of ours, so that it starts at once.
PROGRAM = """
import runpy, sys, time
from pathlib import Path
mine = runpy.run_path(sys.argv[1])["Turns"](Path(sys.argv[2]))
sys.stdin.readline()
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    mine.wait(lambda: None)
    began = time.monotonic()
    time.sleep(0.05)
    print(began, time.monotonic(), flush=True)
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(turns.__file__), str(folder), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def begin(program: subprocess.Popen[str]) -> None:
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()


def pieces(program: subprocess.Popen[str]) -> list[tuple[float, float]]:
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    lines = (line.split() for line in out.splitlines())
    return [(float(began), float(ended)) for began, ended in lines]


def test_two_programs_never_work_at_the_same_moment_and_both_get_on(tmp_path: Path) -> None:
    programs = [start(tmp_path, 8 * turns.TURN_S) for _ in range(2)]
    for program in programs:
        begin(program)
    first, second = map(pieces, programs)
    both = [one for one in first if any(one[0] < b and a < one[1] for a, b in second)]
    assert both == []
    fewest, most = sorted((len(first), len(second)))
    assert fewest > 0.3 * most, "turns are alike"


def test_a_program_alone_waits_for_nobody(tmp_path: Path) -> None:
    with Turns(tmp_path) as alone:
        started = time.monotonic()
        for _ in range(1000):
            alone.wait(lambda: None)
    assert time.monotonic() - started < 1.0


def test_work_waits_for_an_answer_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "ANSWERS_S", 0.3)
    monkeypatch.setattr(turns, "TURN_S", 0.1)
    with Turns(tmp_path) as mine:
        mine.wait(lambda: None)
        time.sleep(turns.TURN_S)
        with answering(tmp_path), answering(tmp_path):
            started = time.monotonic()
            mine.wait(lambda: None)
            assert time.monotonic() - started >= 0.3
            mine.wait(lambda: None)
            assert time.monotonic() - started < 0.3 + turns.TURN_S, "then it has a turn"
        time.sleep(turns.TURN_S)
        started = time.monotonic()
        mine.wait(lambda: None)
        assert time.monotonic() - started < 0.2, "the answer is over"


def test_what_stops_a_run_stops_its_waiting_and_gives_its_place_away(tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    with Turns(tmp_path) as mine, Turns(tmp_path) as third:
        with Turns(tmp_path) as other:
            other.wait(lambda: None)
            with pytest.raises(InterruptedError):
                mine.wait(stop)
        started = time.monotonic()
        third.wait(lambda: None)
        assert third._has_turn
        assert time.monotonic() - started < 1.0


def test_a_stopped_program_holds_nobody_up_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 0.5)
    program = start(tmp_path, 60)
    begin(program)
    assert program.stdout is not None
    program.stdout.readline()  # it has the turn
    os.kill(program.pid, signal.SIGSTOP)
    with Turns(tmp_path) as mine:
        started = time.monotonic()
        mine.wait(lambda: None)
        assert 0.4 < time.monotonic() - started < 5.0
        started = time.monotonic()
        mine.wait(lambda: None)
        assert time.monotonic() - started < 0.3, "it is not waited for a second time"
        program.kill()
        program.communicate()
        mine.wait(lambda: None)
        assert mine._has_turn, "the kernel took the lock back"


def test_where_no_lock_can_be_kept_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with Turns(tmp_path / "file") as mine, answering(tmp_path / "file"):
        started = time.monotonic()
        mine.wait(lambda: None)
        assert time.monotonic() - started < 1.0


def test_an_answer_and_a_turn_keep_the_machine_busy(tmp_path: Path) -> None:
    assert not is_busy(tmp_path)
    with answering(tmp_path):
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)
    with Turns(tmp_path) as mine:
        mine.wait(lambda: None)
        assert is_busy(tmp_path)
    assert not is_busy(tmp_path)
