"""A key-value cache whose rows have lengths of their own: each new token goes behind the last one of its row."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

#: Buffers grow, and a CUDA graph looks at the cache, in steps of this many tokens.
BUCKET = 256


def bucket(tokens: int) -> int:
    """The next multiple of BUCKET."""
    return -(-tokens // BUCKET) * BUCKET


class RowCache(Cache):
    """Keys and values (rows, heads, capacity, features) of each layer of a model with plain full attention.

    Before a step set `rows` (n,) and `positions` (n,), int64 on the model's device, and `span`, how many positions
    the attention may look at; `rows` None means all of them in order. What lies behind a row's end must be masked.
    """

    def __init__(self, count: int) -> None:
        super().__init__(layers=[])
        self.count, self.capacity = count, 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.rows: torch.Tensor | None = None
        self.positions = torch.zeros(0, dtype=torch.int64)
        self.span = 0

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row; what is there stays."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                tensors[layer][:, :, : self.capacity] = old
        self.capacity = capacity

    def load(self, row: int, filled: Any) -> None:
        """Put the one sequence that `filled` (a DynamicCache) holds into a row; it must fit."""
        if not self.keys:
            for layer in filled.layers:
                self.keys.append(self._empty(layer.keys))
                self.values.append(self._empty(layer.values))
        for index, layer in enumerate(filled.layers):
            for mine, theirs in ((self.keys, layer.keys), (self.values, layer.values)):
                mine[index][row, :, : theirs.shape[2]] = theirs[0]

    def copy_row(self, row: int, length: int, empty: Any) -> None:
        """Put the first `length` tokens of a row into `empty`, a DynamicCache."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if length:
                empty.update(keys[row, None, :, :length], values[row, None, :, :length], layer)

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, because a masked NaN would still reach the result.
        return like.new_zeros(self.count, like.shape[1], self.capacity, like.shape[3])

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one token a row, (n, heads, 1, features); returns keys and values (n, heads, span, features)."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        rows = self.rows
        at = torch.arange(self.count, device=keys.device) if rows is None else rows
        keys[at, :, self.positions] = key_states[:, :, 0]
        values[at, :, self.positions] = value_states[:, :, 0]
        keys, values = keys[:, :, : self.span], values[:, :, : self.span]
        return (keys, values) if rows is None else (keys[rows], values[rows])
