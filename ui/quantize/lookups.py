"""The look-ups of one page, numbered, so that an answer that comes late never takes the place of a newer one."""

from __future__ import annotations

import threading
from typing import Any


class Lookups:
    """Numbers of look-ups; kept in a gr.State, of which each page has a copy of its own."""

    def __init__(self) -> None:
        self._newest = 0
        self._lock = threading.Lock()

    def __deepcopy__(self, _: dict[int, Any]) -> Lookups:
        return Lookups()

    def begin(self) -> int:
        """Number a look-up that begins; it is the newest one now."""
        with self._lock:
            self._newest += 1
            return self._newest

    def is_newest(self, number: int) -> bool:
        """Whether no other look-up began since."""
        return number == self._newest
