"""What decoding asks of a model: a session that reads prompts and takes one token per sequence and step.

Every engine computes each sequence independently of the others in the batch, so a batch of 16 gives the answers
that 16 batches of one give (exactly on the CPU engines, up to rounding where a library chooses its kernel by size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Session(Protocol):
    """Key-value caches of a fixed number of sequences, called rows here."""

    def prefill(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Forget what the row held and read a prompt: float32 logits (vocabulary,) of the token after it."""
        ...

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each of the named rows: float32 logits (len(rows), vocabulary) of the next ones."""
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
