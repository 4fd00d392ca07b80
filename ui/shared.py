"""What all pages show alike is made once: the first page that asks makes it, the others take it."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
#: Values that are kept; one that was pushed out is made again.
KEPT = 64


class Shared:
    """Values by a key that says what they were made of. `get` may be called from any thread."""

    def __init__(self) -> None:
        self._made: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, key: Hashable) -> bool:
        """Whether the value of a key is made, so that `get` gives it at once."""
        with self._lock:
            value = self._made.get(key)
        return value is not None and value.done()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, which `make` gives if nobody asked before; others who ask meanwhile wait for it.

        Each caller has a copy of its own: Gradio takes updates apart when it sends them.

        Nothing is kept of a `make` that raises; all who wait for it get the exception.
        """
        with self._lock:
            value = self._made.get(key)
            is_new = value is None
            if value is None:
                value = self._made[key] = Future()
            self._made.move_to_end(key)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        if is_new:
            try:
                value.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._made.pop(key, None)
                value.set_exception(error)
        return copy.deepcopy(value.result())
