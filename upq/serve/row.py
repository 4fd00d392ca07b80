"""Whose turn it is: one answer is computed at a time, a bounded number of others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from upq.serve.refusal import Refusal

#: Answers that may wait while another one is computed.
PLACES = 8
#: When to ask again, seconds: about what a short answer takes.
RETRY_S = 5


class Row:
    """Answers in the order in which they were asked for."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._inside = 0
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and have it until the end of the block. Raises Refusal: 503 where too many wait."""
        if self._inside > self._places:
            raise Refusal(
                503,
                f"{self._places} answers wait already; ask again in {RETRY_S} s.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_S)},
            )
        self._inside += 1
        try:
            async with self._turn:
                yield
        finally:
            self._inside -= 1
