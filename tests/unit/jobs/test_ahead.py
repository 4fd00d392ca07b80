"""Answers made ahead are those of the chat; what somebody waits for comes first, and nothing is made for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.jobs.test_served import stored_run
from upq.config import RunConfig
from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs import Models, ahead
from upq.jobs.ahead import Ahead, Asked
from upq.models import load
from upq.store import Store, Written, open_store

WAIT_S = 60.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[tuple]:
    """A store with a finished run, and its models."""
    store = open_store(tmp_path_factory.mktemp("ahead"))
    run_id = stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    yield store, Models(store), run_id
    store.close()


@pytest.fixture
def lab(shared: tuple, tiny_model_dir: Path, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(*shared, source=str(tiny_model_dir), turns=tmp_path)
    yield lab
    lab.ahead.stop()
    assert lab.ahead._thread is None


class Lab:
    """Answers ahead of the models of one run, by locks of their own."""

    def __init__(
        self, store: Store, models: Models, run_id: int, *, source: str, turns: Path
    ) -> None:
        self.store, self.models, self.run_id, self.source = store, models, run_id, source
        self.ahead = Ahead(store, models, lambda: store.live_run() is not None, turns)

    def asked(
        self, message: str, precision: str = "INT4", tokens: int = 8, **changes: bool
    ) -> Asked:
        return Asked(
            run_id=self.run_id,
            precision=precision,
            source=self.source,
            message=message,
            system="",
            decoding=Decoding(max_new_tokens=tokens),
            is_kept=changes.get("is_kept", True),
        )


def until(is_so: Callable[[], object]) -> None:
    ends = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.01)


def test_an_answer_is_the_one_that_the_chat_gives(lab: Lab) -> None:
    asked = lab.asked("hello", is_kept=False)
    lab.ahead.want("me", [asked])
    until(lambda: lab.ahead.written(asked))
    served = lab.models.get(lab.run_id, "INT4", lab.source)
    *_, last = served.answer([{"role": "user", "content": "hello"}], asked.decoding)
    assert lab.ahead.written(asked) == Written(last.text, last.finish)
    assert lab.store.votes.answer(lab.run_id, "INT4", asked.digest) is None, "not to be kept"


def test_an_answer_of_the_deck_is_made_once_for_all_programs(lab: Lab, tmp_path: Path) -> None:
    asked = [lab.asked("once", precision) for precision in ("FP16", "INT2")]
    lab.ahead.want("me", [], asked)
    until(lambda: all(lab.ahead.written(one) for one in asked))
    other = Ahead(lab.store, lab.models, lambda: False, tmp_path)
    assert [other.written(one) for one in asked] == [lab.ahead.written(one) for one in asked]
    other.want("you", asked)
    assert other._thread is None, "there is nothing to do"


def test_what_somebody_waits_for_comes_before_what_will_be_wanted(lab: Lab) -> None:
    later = [lab.asked(f"long {number}", tokens=400, is_kept=False) for number in range(3)]
    now = lab.asked("short", "INT2", tokens=2, is_kept=False)
    lab.ahead.want("me", [], later)
    lab.ahead.want("you", [now])
    until(lambda: lab.ahead.written(later[-1]))
    found = list(lab.ahead._found)
    assert found.index(now) < found.index(later[-1])


def test_while_a_run_is_at_work_only_what_somebody_waits_for_is_made(lab: Lab) -> None:
    later, now = lab.asked("behind a run"), lab.asked("at once", "INT2")
    run_id = lab.store.enqueue(RunConfig())
    run = lab.store.claim("w", 1, 60.0)
    assert run
    lab.ahead.want("me", [now], [later])
    until(lambda: lab.ahead.written(now))
    time.sleep(3 * ahead.LOOK_S)
    assert lab.ahead.written(later) is None
    lab.store.lease(run).finish("done")
    until(lambda: lab.ahead.written(later))
    lab.store.delete(run_id)


def test_nothing_is_made_for_who_left_or_did_not_look(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = lab.asked("left", tokens=480)
    lab.ahead.want("me", [left])
    lab.ahead.leave("me")
    until(lambda: lab.ahead._thread is None)
    assert lab.ahead.written(left) is None
    monkeypatch.setattr(ahead, "ABSENT_S", 0.0)
    lab.ahead.want("me", [], [lab.asked("never looked")])
    until(lambda: lab.ahead._thread is None)
    assert lab.ahead.written(lab.asked("never looked")) is None


def test_a_model_that_fails_says_why_and_can_be_asked_again(lab: Lab) -> None:
    broken = lab.asked("broken", is_kept=False)
    missing = Asked(**{**vars(broken), "run_id": 99})
    lab.ahead.want("me", [missing, broken])
    until(lambda: lab.ahead.written(broken))
    with pytest.raises(UserError) as caught:
        lab.ahead.written(missing)
    assert caught.value.code == "run_not_found"
    lab.ahead.want("me", [missing])
    assert lab.ahead._thread is None or not lab.ahead._readers, "it is not tried by itself"
    lab.ahead.forget(missing)
    assert lab.ahead.written(missing) is None


def test_an_unexpected_failure_ends_no_later_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = lab.asked("first", is_kept=False), lab.asked("second", is_kept=False)
    get = lab.models.get

    def fail_once(*values: object) -> object:
        monkeypatch.setattr(lab.models, "get", get)
        raise RuntimeError("secret path")

    monkeypatch.setattr(lab.models, "get", fail_once)
    lab.ahead.want("me", [first, second])
    until(lambda: lab.ahead.written(second))
    with pytest.raises(UserError) as caught:
        lab.ahead.written(first)
    assert caught.value.code == "chat_failed"
    assert "secret" not in caught.value.message
    assert "could not be made" in caplog.text
