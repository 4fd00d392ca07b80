"""What a stranger's program may do in its process: take its time, its memory or its life, and nobody else's."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from upq import killable
from upq.killable import Killable, Stopped

PROGRAM = """
import os, sys, time
def work(what, number=0):
    if what == "for ever":
        while True: pass
    if what == "in C for ever":
        import re
        re.search("(a+)+b", "a" * 40)
    if what == "memory":
        return len(bytearray(1 << number))
    if what == "raise":
        raise RuntimeError("only poems here")
    if what == "raise nothing":
        raise KeyError
    if what == "die":
        os._exit(3)
    if what == "print":
        print("this is no answer", flush=True)
    if what == "sleep":
        time.sleep(number)
    return [what, number, os.getpid(), sorted({"torch", "transformers", "upq"} & {*sys.modules})]
"""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Killable]:
    (tmp_path / "stranger.py").write_text(PROGRAM)
    made = Killable(tmp_path / "stranger.py", "work", 1.0)
    yield made
    made.close()


def test_a_process_answers_many_questions_and_is_kept(work: Killable) -> None:
    answers = [work("Grüße \ud83d", number) for number in range(3)]
    assert [answer[:2] for answer in answers] == [["Grüße \ud83d", number] for number in range(3)]
    assert len({answer[2] for answer in answers}) == 1
    assert work("print")[0] == "print"
    assert answers[0][3] == []  # it is small: no library of its parent is there


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("for ever", "does not end within 1 s of work"),
        ("in C for ever", "does not end within 1 s of work"),
        ("raise", "only poems here"),
        ("raise nothing", "KeyError"),
        ("die", "was killed"),
    ],
)
def test_work_that_ends_badly_is_stopped_and_the_next_one_answers(
    what: str, words: str, work: Killable
) -> None:
    with pytest.raises(Stopped, match=words):
        work(what)
    assert work("hello")[0] == "hello"


def test_memory_is_limited(work: Killable) -> None:
    assert work("memory", 20) == 1 << 20
    with pytest.raises(Stopped, match="MemoryError"):
        work("memory", 34)


def test_nobody_waits_for_a_program_without_end(work: Killable) -> None:
    stopped: list[str] = []

    def endless() -> None:
        try:
            work("for ever")
        except Stopped as error:
            stopped.append(str(error))

    thread = threading.Thread(target=endless)
    thread.start()
    time.sleep(0.2)
    assert work("hello")[0] == "hello"
    assert not stopped  # the endless one is still at work
    thread.join(30)
    assert stopped == ["it does not end within 1 s of work"]


def test_time_that_is_waited_for_is_not_counted_until_patience_ends(
    work: Killable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert work("sleep", 1.5)[0] == "sleep"
    monkeypatch.setattr(killable, "PATIENCE_S", 1)
    with pytest.raises(Stopped, match="does not answer for 1 s"):
        work("sleep", 20)


def test_a_process_that_was_killed_while_idle_is_replaced(work: Killable) -> None:
    before = work("hello")[2]
    [process] = work._idle
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work("hello")[2] != before


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="cannot be started"):
        Killable(tmp_path / "gone.py", "work", 1.0)("hello")


def test_the_process_leaves_with_whoever_started_it(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(PROGRAM)
    program = (
        "import os, sys; from pathlib import Path; from upq.killable import Killable\n"
        "print(Killable(Path(sys.argv[1]), 'work', 1.0)('hello')[2], flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "stranger.py")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    child = Path(f"/proc/{int(done.stdout)}/stat")
    until = time.monotonic() + 10
    while child.exists() and child.read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)
