"""What a reader gives its session to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from upq.decode import Reader


def counted(reader: Reader) -> list[int]:
    """How many tokens its session is given to read from here on, call by call; steps are not among them."""
    session: Any = reader.reserve(1)
    read: list[int] = []
    unspied = session.extend

    def extend(row: int, ids: Sequence[int], wanted: int = 1) -> torch.Tensor:
        read.append(len(ids))
        return unspied(row, ids, wanted)

    session.extend = extend
    return read
