"""Work in the background of the app, one piece after the other: how far each is, its cancelling, and why it failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from upq.errors import Cancelled, UserError

K = TypeVar("K")
#: Seconds between two looks whether work that waits for its turn was cancelled.
LOOK_S = 0.2
#: Seconds that `stop` gives work to notice it; between two of its steps lies a second or two.
STOP_S = 10.0

_logger = logging.getLogger(__name__)


@dataclass
class Work:
    """A piece of work. share: what is done of it, 0 to 1; None while it waits for another one.

    failure: why it could not be done, once it has ended.
    """

    share: float | None = None
    failure: UserError | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def is_busy(self) -> bool:
        """Whether it has not ended yet."""
        return not self.ended.is_set()

    def cancel(self) -> None:
        """Let it end at its next step; nothing of it is left behind."""
        self._cancelled.set()

    def tell(self, share: float | None) -> None:
        """Note what is done. Raises Cancelled where it was cancelled."""
        if self._cancelled.is_set():
            raise Cancelled
        self.share = share


class Works:
    """Pieces of work by what they are to do. What was done without a failure is forgotten. Any thread may call."""

    def __init__(self) -> None:
        self._works: dict[Any, Work] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def get(self, key: Hashable) -> Work | None:
        """The work at it, or the last one that failed."""
        return self._works.get(key)

    def of(self, kind: type[K]) -> dict[K, Work]:
        """All work whose key is of a kind, the oldest first."""
        with self._lock:
            return {key: work for key, work in self._works.items() if isinstance(key, kind)}

    def begin(
        self,
        key: Hashable,
        do: Callable[[Work], object],
        is_done: Callable[[], bool] = lambda: False,
    ) -> Work | None:
        """Begin something, unless somebody did; None where it is done already. do: tells the work how far it is."""
        with self._lock:
            work = self._works.get(key)
            if work and work.is_busy:
                return work
            if is_done():
                return None
            work = self._works[key] = Work()
        threading.Thread(target=self._run, args=(key, work, do), daemon=True).start()
        return work

    def stop(self) -> None:
        """Cancel all that is being done, and wait for its end."""
        with self._lock:
            works = list(self._works.values())
        for work in works:
            work.cancel()
        for work in works:
            work.ended.wait(STOP_S)

    def _run(self, key: Hashable, work: Work, do: Callable[[Work], object]) -> None:
        try:
            while not self._turn.acquire(timeout=LOOK_S):
                work.tell(None)
            try:
                do(work)
            finally:
                self._turn.release()
        except Cancelled:
            pass
        except Exception as error:
            work.failure = _described(error)
        finally:
            with self._lock:
                if work.failure is None:
                    del self._works[key]
            work.ended.set()


def _described(error: Exception) -> UserError:
    """An error as a person can act on it; the traceback goes to the app's output."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        found = f"The files could not be written: {error.strerror or error}."
        return UserError("cannot_write", found, "Free some space, then make them again.")
    _logger.error("work in the background failed", exc_info=error)
    return UserError(
        "internal_error",
        f"It stopped at an error that this program did not expect ({type(error).__name__}).",
        "The output of the app ends with the details; please report them.",
    )
