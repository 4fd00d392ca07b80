"""What the app does for a visitor in threads of its own, where no request is handled, with what they may see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gradio.context import LocalContext

from tests.support.visitors import code_of
from tests.ui.test_vote import SETTINGS, values
from tests.unit.jobs.test_served import stored_run
from ui.chat import questions, speeds, vote
from ui.chat.ballot import Ballot
from ui.chat.columns import stream
from ui.chat.composer import AT_ONCE
from ui.chat.turn import Turn
from ui.html import PRECISIONS
from ui.public.app import Place, PublicApp
from ui.public.limits import Limits
from ui.public.visitors import COOKIE
from ui.zero_gpu import Asked, ZeroGpu, on_gpu
from upq.decode import Decoding, Piece
from upq.jobs import Supervisor, served
from upq.models import LoadedModel
from upq.store import HOUSE, Store, open_store


class Lab:
    """An app that is open to strangers, and a finished run of one of them."""

    def __init__(self, store: Store, folder: Path, run_id: int, gpu: ZeroGpu | None = None) -> None:
        self.run_id = run_id
        place = Place(folder, store, folder)
        self.app = PublicApp.of(place, Supervisor(store, folder), Limits(), gpu)
        self.cookies = {name: self.app.visitors.new() for name in ("ada", "bob")}
        store.hand_over(HOUSE, self.name("ada"))

    def name(self, visitor: str) -> str:
        name = self.app.visitors.named(self.cookies[visitor])
        assert name
        return name

    def asks(self, visitor: str, ask: Callable[[], Any]) -> Any:
        """Call something as the page does while it handles an event of this visitor."""
        request: Any = SimpleNamespace(
            username=None, session_hash="page", cookies={COOKIE: self.cookies[visitor]}
        )

        def handle() -> Any:
            LocalContext.request.set(request)
            return ask()

        return copy_context().run(handle)


@pytest.fixture
def lab(tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path) -> Iterator[Lab]:
    with closing(open_store(tmp_path)) as store:
        lab = Lab(store, tmp_path, stored_run(store, tiny, tiny_model_dir))
        yield lab
        lab.app.ahead.stop()


def voted_on(lab: Lab, before: Ballot | None = None) -> Ballot:
    """The next pair of the deck, once its answers are there or cannot come."""
    filled = vote._next(lab.app, before, lab.run_id, SETTINGS)
    ballot = values(filled)["ballot"]
    for _ in vote._answers(lab.app, ballot):
        pass
    return ballot


def test_hidden_models_of_a_visitors_own_run_answer(lab: Lab) -> None:
    ballot = lab.asks("ada", lambda: voted_on(lab))
    assert ballot.failure is None
    assert ballot.written
    code = code_of(lambda: lab.asks("bob", lambda: lab.app.store.run(lab.run_id)))
    assert code == "run_not_found", "nobody else sees it"


def test_hidden_answers_are_counted_as_those_of_the_chat(lab: Lab) -> None:
    for _ in range(lab.app.limits.answers):
        lab.asks("ada", lambda: lab.app.models.admit(Decoding()))
    ballot = lab.asks("ada", lambda: voted_on(lab))
    assert ballot.failure
    assert ballot.failure.code == "too_fast"


def test_what_a_model_holds_of_a_conversation_is_its_visitors_alone(
    lab: Lab, tiny_model_dir: Path
) -> None:
    def model() -> Any:
        return lab.app.models.get(None, "FP16", str(tiny_model_dir))

    def held() -> list[int]:
        with model().reader() as reader:
            return reader.held

    asked = [{"role": "user", "content": "Hello"}]
    lab.asks("ada", lambda: list(model().answer(asked, Decoding(max_new_tokens=2))))
    assert lab.asks("ada", held)
    assert lab.asks("bob", held) == []


def test_a_visitors_own_models_are_timed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "PAUSE_S", 0.0)
    for name in ("is_busy", "others_compute"):
        monkeypatch.setattr(speeds, name, lambda: False)
    monkeypatch.setattr(served, "TIMED_TOKENS", 8)

    def ask() -> None:
        turn, *_ = questions.send(lab.app, None, lab.run_id, None, "one", AT_ONCE, *SETTINGS)
        assert isinstance(turn, Turn)
        for precision in PRECISIONS:
            for _ in stream(lab.app, precision, turn):
                pass
        speeds.measure(lab.app, turn).join(60)

    lab.asks("ada", ask)
    assert lab.app.timed == len(PRECISIONS)


def test_hidden_models_answer_on_a_borrowed_gpu_which_is_not_spent_on_timing(
    tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    lent: list[str] = []

    def borrowing(asked: Asked) -> Iterator[Piece]:
        lent.append(asked.precision)
        yield from on_gpu(asked)

    with closing(open_store(tmp_path)) as store:
        run_id = stored_run(store, tiny, tiny_model_dir)
        lab = Lab(store, tmp_path, run_id, ZeroGpu(tmp_path, borrowing))
        ballot = lab.asks("ada", lambda: voted_on(lab))
        assert ballot.written
        assert set(ballot.shown) <= set(lent)
        model = lab.asks("ada", lambda: lab.app.models.get(run_id, "INT2", ""))
        lab.app.ahead.stop()
        lent.clear()
        assert model.time_alone(lambda: False) is None
        assert not lent
