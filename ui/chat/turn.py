"""A turn of the chat, and one column's answer in it: it waits for its place, loads its model and streams."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ui.app_state import App, Badge, Timing, speed_note
from ui.chat.render import Message
from ui.html import PRECISIONS, Precision, percent, stage_name
from upq.decode import Decoding, Piece, text_repeats
from upq.errors import UserError
from upq.jobs import ModelKey, Served, key_of
from upq.store import Exchange, Place

WAIT_S = 0.2
#: Shorter answers say little about speed.
TIMED_TOKENS = 16

_logger = logging.getLogger(__name__)
_ids = itertools.count(1)


@dataclass
class Thread:
    """What the turns of a conversation share: where it is kept, and what kept it from being kept last time.

    is_deleted: somebody threw it away on this page, so that it is not kept again.
    """

    place: Place | None = None
    is_deleted: bool = False
    trouble: UserError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(kw_only=True)
class Turn:
    """One message on its way to the columns: what they need, how they are told to stop, what they answered.

    run_id is the run whose models answer, None for the bundled FP16 model; models tells which model stands behind each
    column that answers; histories holds the messages of each column, those of earlier turns included; id is another one
    for each turn of this program. answers holds what the columns said in this turn, earlier the exchanges before it;
    is_gone tells that the run of the conversation is deleted, so that it can only be read.
    """

    message: str
    system: str
    decoding: Decoding
    one_at_a_time: bool
    run_id: int | None
    models: Mapping[Precision, ModelKey] = field(default_factory=dict)
    histories: dict[Precision, list[Message]] = field(default_factory=dict)
    stop: dict[Precision, threading.Event] = field(default_factory=lambda: _events())
    done: dict[Precision, threading.Event] = field(default_factory=lambda: _events())
    answers: dict[Precision, Message] = field(default_factory=dict)
    earlier: list[Exchange] = field(default_factory=list)
    thread: Thread = field(default_factory=Thread)
    is_gone: bool = False
    abandoned: bool = False
    id: int = field(default_factory=lambda: next(_ids))
    _claimed: set[Precision] = field(default_factory=set)

    def claim(self, precision: Precision) -> bool:
        """Tell whether this column still has to answer; that is true only once."""
        is_new = precision not in self._claimed
        self._claimed.add(precision)
        return is_new

    def may_start(self, precision: Precision) -> bool:
        """Tell whether a column may answer now: one at a time, all columns to its left have to be done."""
        before = PRECISIONS[: PRECISIONS.index(precision)]
        return not self.one_at_a_time or all(self.done[name].is_set() for name in before)

    def stop_all(self) -> None:
        """Ask every column to stop."""
        for event in self.stop.values():
            event.set()

    def abandon(self) -> None:
        """Stop every column and show nothing more of the turn."""
        self.abandoned = True
        self.stop_all()

    def goes_on_with(self, models: Mapping[Precision, ModelKey]) -> bool:
        """Tell whether every column that answers in this turn still has its model in `models`."""
        return all(models.get(precision) == model for precision, model in self.models.items())

    def occupies(self, precision: Precision) -> bool:
        """Tell whether the column shows this conversation: it spoke, or is about to."""
        answering = precision in self.models and not self.done[precision].is_set()
        return answering or bool(self.histories.get(precision))

    @property
    def number(self) -> int:
        """Which question of its conversation it is, from 1."""
        return len(self.earlier) + 1

    @property
    def is_over(self) -> bool:
        return all(event.is_set() for event in self.done.values())


def before_turn(
    histories: Mapping[Precision, list[Message]], number: int
) -> dict[Precision, list[Message]]:
    """The messages of each column without the question of a number, and all behind it. A column that did not take part
    in it stays as it is.
    """
    return {name: messages[: place_of(messages, number)] for name, messages in histories.items()}


def place_of(messages: Sequence[Message], number: int) -> int:
    """Where the question of a number stands in a column, or its end where it was not asked there."""
    places = [at for at, message in enumerate(messages) if message.get("turn") == number]
    return places[0] if places else len(messages)


def _events() -> dict[Precision, threading.Event]:
    return {precision: threading.Event() for precision in PRECISIONS}


@dataclass(frozen=True)
class Column:
    """What a column can show now. source is empty while its artifact does not exist."""

    run_id: int | None
    source: str
    key: ModelKey
    training: str  # what the live run does about it, or ""
    badge: Badge

    @property
    def is_loaded(self) -> bool:
        """Whether its model has been loaded here: its backend is known then."""
        return bool(self.badge.get("backend"))


@dataclass(frozen=True)
class Progress:
    """What a column shows at one moment of its answer: all messages, `answer` (if it has begun) among them."""

    asked: list[Message]
    answer: Message | None = None
    busy: str = ""
    over: bool = False

    @property
    def messages(self) -> list[Message]:
        """All messages, the answer so far included."""
        return [*self.asked, self.answer] if self.answer else self.asked


def column(app: App, precision: Precision, chosen: int | None) -> Column:
    """Tell whether and from where a column can answer, for the chosen run or none."""
    run = app.context_run(chosen)
    source = run.model if run else "bundled"
    run_id = run.id if run else None
    sizes = app.precisions(run_id) if run_id else {}
    key = key_of(run, precision, source)
    if precision == "FP16" or precision in sizes:
        badge = app.badges.get(key) or _stored_badge(app, run_id, key)
        return Column(run_id, source, key, "", badge)
    training = ""
    if run and run.state == "running" and run.kind == "quantize":
        training = _training(precision, run.stage, run.stage_step, run.stage_total)
    elif run and run.state == "queued":
        training = f"Run #{run.id} is queued; {precision} comes with it."
    return Column(run_id, "", key, training, {})


def _training(precision: str, stage: str, step: int, total: int) -> str:
    share = percent(min(1.0, step / total) if total else 0.0, 0)
    if stage == precision.lower():
        return f"{precision} is being trained: {share}"
    return f"{precision} is on its way: {stage_name(stage or 'load')} {share}"


def _stored_badge(app: App, run_id: int | None, key: ModelKey) -> Badge:
    """What the store knows of a model that was not loaded yet."""
    badge: Badge = {}
    for row in app.store.artifacts(run_id) if run_id else ():
        if row.precision == key.precision:
            badge = {"size_bytes": row.size_bytes, "bits_per_weight": row.bits_per_weight}
    for row in app.store.measurements(run_id) if run_id and key.precision == "FP16" else ():
        if row["label"] == "FP16":
            badge = {"size_bytes": row["size_bytes"], "bits_per_weight": row["bits_per_weight"]}
    rate = app.store.note(speed_note(key))
    return {**badge, "fair": {"tokens_per_s": rate}} if rate else badge


def models_behind(app: App, chosen: int | None) -> dict[Precision, ModelKey]:
    """Tell which model answers in each column that can answer now, for the chosen run or none."""
    columns: dict[Precision, Column] = {name: column(app, name, chosen) for name in PRECISIONS}
    return {precision: state.key for precision, state in columns.items() if state.source}


def badge_of(served: Served) -> Badge:
    """Return the measured numbers of a loaded model."""
    return {
        "size_bytes": served.size_bytes,
        "memory_bytes": served.memory_bytes,
        "bits_per_weight": served.bits_per_weight,
        "backend": served.backend,
        "load_s": served.load_s,
        "note": served.note,
    }


def answer(
    app: App, turn: Turn, precision: Precision, chosen: int | None, history: Sequence[Message]
) -> Iterator[Progress]:
    """Yield what the column shows until its answer is complete; the last one has over=True.

    The column's part of the turn always ends, also if the page is closed in the middle.
    """
    question: Message = {"role": "user", "content": turn.message, "turn": turn.number}
    asked: list[Message] = [*history, question]
    try:
        state = column(app, precision, chosen)
        if state.source:
            yield from _answer(app, turn, precision, state, asked)
    except Exception as error:  # a column is a boundary: what fails here is said here
        yield Progress(asked, _failure(error), over=True)
    finally:
        turn.done[precision].set()


def _failure(error: Exception) -> Message:
    """Return the error as a message of the column; details of an unexpected one go to the log."""
    if not isinstance(error, UserError):
        _logger.error("a chat column failed", exc_info=error)
        what = f"This column stopped at an unexpected error ({type(error).__name__})."
        error = UserError("chat_failed", what, "Send again; the terminal shows the details.")
    return {
        "role": "assistant",
        "content": error.message,
        "hint": error.hint,
        "finish": "failed",
    }


def _answer(
    app: App, turn: Turn, precision: Precision, state: Column, asked: list[Message]
) -> Iterator[Progress]:
    stop = turn.stop[precision]
    while not turn.may_start(precision) and not stop.wait(WAIT_S):
        yield Progress(asked, busy="Waits for the columns before it.")
    yield Progress(asked, busy="Reading." if state.is_loaded else "Loading the model.")
    served = app.models.get(state.run_id, precision, state.source)
    _keep_badge(app, state, served)
    alone = False
    if turn.one_at_a_time:
        while not (alone := app.timing_lock.acquire(timeout=WAIT_S)) and not stop.is_set():
            yield Progress(asked, busy="Waits for another page's timing.")
    try:
        fair, started = alone, time.monotonic()
        for piece in _pieces(served, turn, precision, asked):
            fair = fair and not app.is_busy()
            _keep_timing(app, state.key, piece, fair)
            yield Progress(asked, _reply(piece, time.monotonic() - started), over=piece.done)
    finally:
        if alone:
            app.timing_lock.release()


def _keep_badge(app: App, state: Column, served: Served) -> None:
    """Keep what is known of a loaded model; timings stay as long as the same backend computes."""
    known: Badge = app.badges.get(state.key, state.badge)
    timings: Badge = known if known.get("backend") in (None, served.backend) else {}
    app.badges[state.key] = {**timings, **badge_of(served)}


def _keep_timing(app: App, key: ModelKey, piece: Piece, fair: bool) -> None:
    """Keep the speed so far for the badge, and a fair one of a whole answer for the results too.

    A short answer replaces no earlier figure.
    """
    badge: Badge = app.badges[key]
    timing: Timing = {"tokens_per_s": piece.tokens_per_s, "first_token_s": piece.first_token_s}
    is_long = piece.tokens >= TIMED_TOKENS
    if fair and (is_long or "fair" not in badge):
        app.badges[key] = {**badge, "fair": timing}
    elif not fair and (is_long or "shared" not in badge):
        app.badges[key] = {**badge, "shared": timing}
    if fair and is_long and piece.done:
        app.store.set_note(speed_note(key), piece.tokens_per_s)


def _pieces(
    served: Served, turn: Turn, precision: Precision, asked: list[Message]
) -> Iterator[Piece]:
    conversation = conversation_of(turn.system, asked)
    return served.answer(conversation, turn.decoding, turn.stop[precision].is_set)


def _reply(piece: Piece, seconds: float) -> Message:
    message: Message = {
        "role": "assistant",
        "content": piece.text,
        "finish": piece.finish,
        "tokens": piece.tokens,
        "prompt_tokens": piece.prompt_tokens,
        "seconds": seconds,
    }
    if piece.done:
        message["repeats"] = text_repeats(piece.text)
        message["ids"] = piece.ids
    if piece.left_out:
        message["left_out"], message["limit"] = piece.left_out, piece.limit
    return message


def conversation_of(system: str, messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return what the model reads: roles and texts. A failed answer and its question are left out."""
    conversation: list[dict[str, str]] = (
        [{"role": "system", "content": system}] if system.strip() else []
    )
    for message in messages:
        if message.get("finish") == "failed":
            conversation.pop()
            continue
        conversation.append({"role": message["role"], "content": message["content"]})
    return conversation
