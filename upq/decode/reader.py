"""Logits of whole sequences, one after the other; a beginning that the next sequence shares is not read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile

import torch

from upq.decode.engine import Engine, Session

#: Room is made in steps of this many tokens.
STEP = 1024


def shared_length(sequences: Iterable[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


class Reader:
    """One row of an engine's session and the tokens that it holds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: list[int] = []
        self._session: Session | None = None
        self._room = 0

    @torch.inference_mode()
    def logits(
        self, ids: Sequence[int], wanted: int = 1, shared: int | None = None
    ) -> torch.Tensor:
        """float32 logits (wanted, vocabulary) after each of the last `wanted` tokens of a sequence.

        shared: read exactly so many first tokens apart from the rest, unless the row begins with them. Engines that
        choose their kernels by size then give the same bits whatever was read before. None: share what can be shared.
        """
        session = self._session_for(len(ids))
        ids = list(ids)
        if shared is None:
            shared = min(shared_length([self.held, ids]), len(ids) - wanted)
        elif self.held[:shared] != ids[:shared]:
            session.prefill(0, ids[:shared])
            self.held = ids[:shared]
        session.rewind(0, shared)
        self.held = ids[:shared]
        found = session.extend(0, ids[shared:], wanted)
        self.held = ids
        return found

    def _session_for(self, length: int) -> Session:
        if self._session is None or length > self._room:
            self._room = -(-length // STEP) * STEP
            self._session, self.held = self.engine.session(1, self._room), []
        return self._session
