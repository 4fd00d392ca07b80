"""Logits of whole sequences, one after the other; a beginning that the next sequence shares is not read again."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch

from upq.decode.engine import Engine, RecallingSession, Session
from upq.models import longest_sequence

#: Room is made in steps of this many tokens.
STEP = 1024


def shared_length(sequences: Iterable[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


class Reader:
    """One row of an engine's session and the tokens that it holds, of which the first `length` were read last."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: list[int] = []
        self.length = 0
        self._session: Session | None = None
        self._room = 0

    @property
    def recalls(self) -> bool:
        """Whether what is held is told again, to the bit, where it is wanted (RecallingSession)."""
        return isinstance(self._session, RecallingSession)

    def reserve(self, length: int) -> Session:
        """Make room for so many tokens. Where more is needed than there is, what is held is forgotten: so that this is
        rare, there is twice the room then, but no more than the model reads.

        Raises UserError("out_of_memory") where an engine has none, and holds nothing then.
        """
        if self._session is None or length > self._room:
            ahead = min(2 * self._room, longest_sequence(self.engine.config))
            room = max(-(-length // STEP) * STEP, ahead)
            self._session, self._room, self.held, self.length = None, 0, [], 0
            self._session = self.engine.session(1, room)
            self._room = room
        return self._session

    @torch.inference_mode()
    def logits(
        self, ids: Sequence[int], wanted: int = 1, shared: int | None = None
    ) -> torch.Tensor:
        """float32 logits (wanted, vocabulary) after each of the last `wanted` tokens of a sequence.

        shared: read exactly so many first tokens apart from the rest, unless the row begins with them. Engines that
        choose their kernels by size then give the same bits whatever was read before. None: share what can be shared.
        """
        session, ids = self.reserve(len(ids)), list(ids)
        start = len(ids) - wanted
        if shared is None:
            held = shared_length([self.held, ids])
            shared = held if self.recalls else min(held, start)
        elif self.held[:shared] != ids[:shared]:
            session.prefill(0, ids[:shared])
            self.held = ids[:shared]
        if shared == len(ids):  # what the row holds behind them stays
            self.length = shared
            return self._recall(start, shared)
        session.rewind(0, shared)
        self.held, self.length = ids[:shared], shared
        found = session.extend(0, ids[shared:], min(wanted, len(ids) - shared))
        self.held, self.length = ids, len(ids)
        return torch.cat([self._recall(start, shared), found]) if start < shared else found

    def _recall(self, first: int, last: int) -> torch.Tensor:
        assert isinstance(self._session, RecallingSession)
        return self._session.recall(0, first, last)

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """Append one token to the sequence that was read last: float32 logits (vocabulary,) of the next one."""
        if self.length == self._room:
            return self.logits([*self.held, token])[0]
        session = self.reserve(self.length + 1)
        if len(self.held) > self.length:
            session.rewind(0, self.length)
            del self.held[self.length :]
        found = session.step([0], [token])[0]
        self.held.append(token)
        self.length += 1
        return found


class LastReader:
    """The reader that an engine was last read with, so that a conversation that goes on is not read from its beginning.

    It is lent to one at a time, and to its owner only; others get a new one. So does everyone where what a token gets
    depends, by rounding, on what is read with it: answers would depend on what was read before.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._kept: tuple[str, Reader] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, owner: str = "") -> Iterator[Reader]:
        """A reader, as long as the block runs; what it holds then is what its owner may find next time."""
        with self._lock:
            whose, kept = self._kept or ("", None)
            reader = kept if kept and whose == owner else Reader(self.engine)
            self._kept = None
        try:
            yield reader
        finally:
            if reader.recalls:
                self._kept = owner, reader
