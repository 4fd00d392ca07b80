"""Commands on a run that is there: a chat as it was asked for, what is left of one at work, deleting, the doctor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.helpers import tiny_config
from tests.unit.jobs.test_served import stored_run
from upq.__main__ import main
from upq.decode import Decoding
from upq.jobs import Models
from upq.models import load
from upq.store import open_store


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A data folder with one finished run, number 1."""
    store = open_store(tmp_path)
    stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    store.close()
    return tmp_path


def called(folder: Path, *arguments: str) -> int:
    return main(["--data-dir", str(folder), *arguments])


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let a person type these lines and then end the input."""
    left: Iterator[str] = iter(lines)

    def answer(_: str = "") -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_a_chat_is_drawn_as_the_flags_say_and_tells_speeds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "hello")
    flags = ["--system", "Be brief.", "--max-tokens", "9", "--temperature", "1.3"]
    flags += ["--top-p", "0.9", "--seed", "3"]
    assert called(folder, "chat", "1", "--precision", "INT4,INT2", *flags) == 0
    printed = capsys.readouterr().out
    store = open_store(folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]
    decoding = Decoding(max_new_tokens=9, temperature=1.3, top_p=0.9, seed=3)
    for precision in ("INT4", "INT2"):
        *_, last = Models(store).get(1, precision, "").answer(messages, decoding)
        assert f"{precision}: {last.text}  [{last.tokens} tokens, first after " in printed
    assert printed.count(" tokens/s") == 2
    store.close()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--max-tokens", "0", "max_new_tokens is 0; expected 1 to 8192."),
        ("--temperature", "9", "temperature is 9.0; expected 0 to 5."),
        ("--seed", "-1", "seed is -1; expected 0 to"),
    ],
)
def test_a_chat_refuses_what_no_answer_can_be_drawn_with(
    folder: Path, flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(folder, "chat", "1", flag, value) == 2
    assert words in capsys.readouterr().err


def test_a_run_is_deleted_after_a_question_and_only_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ([], ["n"], [""]):
        typed(monkeypatch, *answer)
        assert called(folder, "delete", "1") == 1
        assert "Nothing was deleted." in capsys.readouterr().out
    typed(monkeypatch, "y")
    assert called(folder, "delete", "1") == 0
    assert "Run 1 is deleted." in capsys.readouterr().out
    assert called(folder, "show", "1") == 2


def test_a_run_is_deleted_without_a_question_where_that_was_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch)
    assert called(folder, "delete", "1", "--yes") == 0
    assert called(folder, "delete", "1", "--yes") == 2


def test_a_run_that_waits_is_refused_before_anybody_is_asked(
    folder: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    store = open_store(folder)
    waiting = store.enqueue(tiny_config(tiny_model_dir))
    store.close()
    for words in ([], ["--yes"]):
        assert called(folder, "delete", str(waiting), *words) == 2
        assert "cannot be deleted. Cancel it first." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (20.0, "20 s left in it"),
        (200.0, "3 min 20 s left in it"),
        (7200.0, "2 h left in it"),
    ],
)
def test_a_run_at_work_tells_how_long_its_stage_still_takes(
    tmp_path: Path,
    tiny_model_dir: Path,
    seconds: float,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = open_store(tmp_path)
    run_id = store.enqueue(tiny_config(tiny_model_dir))
    run = store.claim("cpu@here:1", 1, 60.0)
    assert run is not None
    lease = store.lease(run)
    lease.stage("int4", 10)
    lease.progress(4, None, seconds, "", 1, None)
    assert called(tmp_path, "list") == 0
    assert words in capsys.readouterr().out.replace("\n", " ")
    assert called(tmp_path, "show", str(run_id)) == 0
    assert f"stage int4: 4 of 10, {words}" in capsys.readouterr().out
    lease.finish("done")
    assert called(tmp_path, "list") == 0
    assert "left in it" not in capsys.readouterr().out
    store.close()


def test_the_doctor_tells_what_the_machine_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(folder, "doctor") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "Versions",
        "Device",
        "CPU kernels",
        "GPU kernels",
        "Checks",
        "Data folder",
        "The data folder is in order.",
    ]
    assert "torch 2" in lines[0]
    assert "cores" in lines[1]
    assert "of 25 instruction types can be judged" in lines[4]
    assert str(folder) in lines[5]
    assert "GB free" in lines[5]
