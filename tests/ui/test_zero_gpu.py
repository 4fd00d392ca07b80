"""Answers that borrow a GPU are computed in another process, from values alone; elsewhere nothing changes."""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.jobs.test_served import stored_run
from ui import zero_gpu as borrowed
from ui.zero_gpu import LONGEST_S, Asked, ZeroGpu, duration, on_gpu, zero_gpu
from upq.decode import Decoding, Piece
from upq.jobs import Models
from upq.models import load
from upq.store import open_store

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    store = open_store(tmp_path)
    stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    store.close()
    return tmp_path


def asked(folder: Path, tokens: int) -> Asked:
    decoding = Decoding(max_new_tokens=tokens)
    return Asked(str(folder), 1, "INT2", "", HELLO, decoding)


def _pickled(question: bytes) -> list[bytes]:
    return [pickle.dumps(piece) for piece in on_gpu(pickle.loads(question))]  # noqa: S301  our own


def elsewhere(question: Asked) -> Iterator[Piece]:
    """`on_gpu` in another process, which gets and gives values as a borrowing one does."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pieces = pool.apply(_pickled, [pickle.dumps(question)])
    yield from (pickle.loads(piece) for piece in pieces)  # noqa: S301  our own


def test_another_process_gives_the_same_answer(folder: Path) -> None:
    store = open_store(folder)
    *_, expected = Models(store).get(1, "INT2", "").answer(HELLO, Decoding(max_new_tokens=9))
    store.close()
    pieces = ZeroGpu(folder, elsewhere).answer(
        (1, "INT2", ""), HELLO, Decoding(max_new_tokens=9), lambda: False
    )
    *_, last = pieces
    assert (last.text, last.tokens, last.finish) == (
        expected.text,
        expected.tokens,
        expected.finish,
    )


def test_an_answer_that_is_stopped_gives_the_gpu_back(folder: Path) -> None:
    ended = []

    def borrowing(question: Asked) -> Iterator[Piece]:
        try:
            for count in range(1, question.decoding.max_new_tokens):
                yield Piece("word " * count, 3, count, 0.1, 9.0, False, "")
        finally:
            ended.append(True)

    stops = iter([False, False, True])
    pieces = ZeroGpu(folder, borrowing).answer(
        (1, "INT2", ""), HELLO, Decoding(max_new_tokens=400), lambda: next(stops)
    )
    told = list(pieces)
    assert [piece.finish for piece in told] == ["", "", "cancelled"]
    assert told[-1].done
    assert ended == [True]


def test_the_time_of_a_call_fits_the_tokens_that_are_asked_for(folder: Path) -> None:
    times = [duration(asked(folder, tokens)) for tokens in (1, 200, 512, 8192)]
    assert times == sorted(times)
    assert times[0] >= 10
    assert times[-1] == LONGEST_S


def test_without_the_package_of_spaces_there_is_nothing_to_borrow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert borrowed.zero_gpu(folder) is None


def test_with_the_package_of_spaces_but_no_such_hardware_nothing_changes(folder: Path) -> None:
    spaces = pytest.importorskip("spaces")
    assert zero_gpu(folder) is None
    assert spaces.GPU(duration=duration)(on_gpu) is on_gpu
