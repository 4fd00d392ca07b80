"""What decoding asks of a model: a session that reads prompts and takes one token per sequence and step.

Every engine computes each sequence independently of the others in the batch, so a batch of 16 gives the answers
that 16 batches of one give (exactly on the CPU engines, up to rounding where a library chooses its kernel by size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from upq.errors import UserError


class Session(Protocol):
    """Key-value caches of a fixed number of sequences, called rows here."""

    def prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Forget what the row held and read a prompt: float32 logits (vocabulary,) of the token after it."""
        ...

    def extend(self, row: int, ids: Sequence[int], wanted: int = 1) -> torch.Tensor:
        """Append tokens to a row: float32 logits (wanted, vocabulary) after each of the last `wanted` of them."""
        ...

    def rewind(self, row: int, length: int) -> None:
        """Forget what the row holds behind its first `length` tokens. ValueError if it holds fewer."""
        ...

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each of the named rows: float32 logits (len(rows), vocabulary) of the next ones."""
        ...


@runtime_checkable
class RecallingSession(Session, Protocol):
    """A session that can tell logits again. What a token gets is the same, to the bit, whatever is read with it."""

    def recall(self, row: int, first: int, last: int) -> torch.Tensor:
        """float32 logits (last - first, vocabulary) after tokens number first to last - 1 that the row holds."""
        ...


class Engine(Protocol):
    """A model that is ready to decode. Sessions may be open in several threads at a time.

    config, generation_config: as transformers has them. backend: what computes, for people. memory_bytes: weights as
    they lie in memory, caches not counted.
    """

    config: Any
    generation_config: Any
    device: torch.device
    backend: str
    memory_bytes: int

    def session(self, rows: int, length: int) -> Session:
        """Room for `rows` sequences of at most `length` tokens each, prompt included."""
        ...

    def first_bad_block(self, ids: Sequence[int]) -> int | None:
        """The number of the first decoder block that gives values that are not finite for a sequence; None: none."""
        ...


def diverged(engine: Engine, ids: Sequence[int]) -> UserError:
    """The error of a model whose logits behind a sequence are not numbers, with the block where that begins."""
    block = engine.first_bad_block(ids)
    where = "in no single block" if block is None else f"first in decoder block {block}"
    return UserError(
        "diverged",
        f"The model gives logits that are not numbers behind {len(ids)} tokens ({where}).",
        "Its weights or activations leave the range of the number format; use another precision of it, or quantize it"
        " again with lower learning rates.",
    )


def check_rewind(held: int, length: int) -> None:
    """ValueError unless a row that holds `held` tokens can be rewound to `length`."""
    if not 0 <= length <= held:
        raise ValueError(f"a row of {held} tokens cannot be rewound to {length}")
