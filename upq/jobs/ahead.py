"""Answers that are made ahead of the person who will read them, one after the other, in a thread that ends when nobody
has asked for a while.

What somebody waits for now comes first and goes before all background work, as an answer of the chat does. What will be
wanted next is background work itself: it waits while a run is at work, and lets the chat go first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from pathlib import Path

from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs.served import Models
from upq.jobs.turns import Turns, answering
from upq.store import Store, Written, question_digest

#: Nothing is made for a reader who has not looked for so long.
ABSENT_S = 120.0
#: Between two looks whether a run is still at work.
LOOK_S = 0.5
#: Seconds that `stop` gives the thread to notice it; it looks between two tokens.
STOP_S = 10.0
#: Answers that are kept in memory, and failures.
REMEMBERED = 64

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A message to one model of a run. is_kept: whether its answer belongs into the database."""

    run_id: int
    precision: str
    source: str
    message: str
    system: str
    decoding: Decoding
    is_kept: bool

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The system prompt and how the answer is drawn."""
        return {"system": self.system, **vars(self.decoding)}

    @property
    def digest(self) -> str:
        """Names the question, whoever answers it."""
        return question_digest(self.message, self.settings)


@dataclass
class _Reader:
    """What somebody waits for, what they will want next, who they are, and until when anything is made for them."""

    now: list[Asked]
    later: list[Asked]
    context: Context = field(default_factory=copy_context)
    until: float = field(default_factory=lambda: time.monotonic() + ABSENT_S)


class _Dropped(Exception):
    """Nobody wants the answer any more, or something else comes first."""


class _Hurry(Exception):
    """Somebody waits for the answer now."""


class Ahead:
    """All methods may be called from any thread. An answer is made in the context of `want`'s caller, and so with what
    they may see.

    is_busy: whether a run of anybody is at work. turns: the folder of upq.jobs.turns.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        is_busy: Callable[[], bool],
        turns: Path | None = None,
    ) -> None:
        self._store, self._models, self._is_busy, self._turns = store, models, is_busy, turns
        self._readers: dict[Hashable, _Reader] = {}
        self._found: OrderedDict[Asked, Written | UserError] = OrderedDict()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def want(self, reader: Hashable, now: Sequence[Asked], later: Sequence[Asked] = ()) -> None:
        """Have answers made, in this order, in place of all that the reader wanted before."""
        with self._changed:
            wanted = _Reader(list(filter(self._lacks, now)), list(filter(self._lacks, later)))
            self._readers.pop(reader, None)
            if self._stopped or not (wanted.now or wanted.later):
                return
            self._readers[reader] = wanted
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def look(self, reader: Hashable) -> None:
        """The reader is still there."""
        with self._changed:
            if reader in self._readers:
                self._readers[reader].until = time.monotonic() + ABSENT_S

    def leave(self, reader: Hashable) -> None:
        """The reader wants nothing any more."""
        self.want(reader, [])

    def forget(self, asked: Asked) -> None:
        """Whatever became of the question, it may be asked again."""
        with self._changed:
            self._found.pop(asked, None)

    def written(self, asked: Asked) -> Written | None:
        """The whole answer, once it is there. Raises the UserError that says why there is none."""
        found = self._found.get(asked)
        if isinstance(found, UserError):
            raise found
        if found is None and asked.is_kept:
            return self._store.votes.answer(asked.run_id, asked.precision, asked.digest)
        return found

    def stop(self) -> None:
        """Make nothing more, and wait until the thread has ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            thread = self._thread
        if thread:
            thread.join(STOP_S)

    def _lacks(self, asked: Asked) -> bool:
        try:
            return self.written(asked) is None
        except UserError:
            return False

    def _work(self) -> None:
        try:
            while wanted := self._next():
                asked, context = wanted
                try:
                    found = context.copy().run(self._made, asked)
                except _Dropped:
                    continue
                except Exception as error:  # a boundary: whoever waits for the answer is told
                    found = _described(error)
                self._note(asked, found)
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None  # an error ended it; the next wish starts another one

    def _made(self, asked: Asked) -> Written | None:
        """An answer to be remembered; None where the database has it now."""
        written = self._answer(asked)
        if not asked.is_kept:
            return written
        self._store.votes.keep_answer(asked.run_id, asked.precision, asked.digest, written)
        return None

    def _next(self) -> tuple[Asked, Context] | None:
        """What to answer, and for whom; None, and no thread, where nobody wants anything."""
        with self._changed:
            while not self._stopped:
                present = time.monotonic()
                self._readers = {
                    name: reader for name, reader in self._readers.items() if reader.until > present
                }
                if not self._readers:
                    break
                readers = self._readers.values()
                urgent = [(asked, one.context) for one in readers for asked in one.now]
                if urgent:
                    return urgent[0]
                if not self._is_busy():
                    return next((asked, one.context) for one in readers for asked in one.later)
                self._changed.wait(LOOK_S)
            self._thread = None
            return None

    def _note(self, asked: Asked, found: Written | UserError | None) -> None:
        """Nobody waits for this one any more. found: what is remembered of it."""
        with self._changed:
            if found is not None:
                self._found[asked] = found
                while len(self._found) > REMEMBERED:
                    self._found.popitem(last=False)
            for name, reader in list(self._readers.items()):
                for wanted in (reader.now, reader.later):
                    if asked in wanted:
                        wanted.remove(asked)
                if not reader.now and not reader.later:
                    del self._readers[name]

    def _answer(self, asked: Asked) -> Written:
        served = self._models.get(asked.run_id, asked.precision, asked.source)
        system = [{"role": "system", "content": asked.system}] if asked.system.strip() else []
        messages = [*system, {"role": "user", "content": asked.message}]
        with ExitStack() as held:
            turns = held.enter_context(Turns(self._turns))
            hurries = False

            def pause() -> bool:
                nonlocal hurries
                try:
                    self._look_at(asked, hurries)
                    if not hurries:
                        turns.wait(lambda: self._look_at(asked, hurries))
                except _Hurry:
                    held.close()
                    held.enter_context(answering(self._turns))
                    hurries = True
                return False

            pause()
            *_, last = served.write(messages, asked.decoding, pause)
        return Written(last.text, last.finish)

    def _look_at(self, asked: Asked, hurries: bool) -> None:
        """Raises _Dropped where the answer is not to go on, _Hurry where somebody waits for it since a moment ago."""
        with self._changed:
            readers = list(self._readers.values())
            is_urgent = any(asked in reader.now for reader in readers)
            has_urgent = any(reader.now for reader in readers)
            is_wanted = is_urgent or any(asked in reader.later for reader in readers)
            if self._stopped or not is_wanted or (has_urgent and not is_urgent):
                raise _Dropped
        if is_urgent and not hurries:
            raise _Hurry


def _described(error: Exception) -> UserError:
    """An error as a person can act on it; the traceback goes to the app's output."""
    if isinstance(error, UserError):
        return error
    _logger.error("an answer that was to be voted on could not be made", exc_info=error)
    return UserError(
        "chat_failed",
        f"The answer stopped at an unexpected error ({type(error).__name__}).",
        "Try again; the terminal shows the details.",
    )
