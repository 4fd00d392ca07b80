"""Batches of token sequences: what the loss counts, which examples share a batch, and how they are padded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Example:
    """One training sequence; the loss counts the tokens from index `counted_from` on (at least 1)."""

    ids: tuple[int, ...]
    counted_from: int

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return len(self.ids) - self.counted_from


@dataclass(frozen=True)
class Batch:
    """ids: (rows, tokens) int64, padded on the right; real, counts: (rows, tokens) bool.

    `counts[r, t]` means that the prediction made at position t, of token t + 1, belongs to the loss.
    """

    ids: torch.Tensor
    real: torch.Tensor
    counts: torch.Tensor

    @property
    def next_ids(self) -> torch.Tensor:
        """The tokens that the counted positions have to predict, (counted,) int64."""
        return self.ids.roll(-1, 1)[self.counts]


def plan_batches(
    examples: Sequence[Example], total_tokens: int, batch_tokens: int, seed: int
) -> list[list[int]]:
    """Indices of the examples of every batch, as many passes over the data as total_tokens needs.

    A batch holds sequences of like length, at most batch_tokens once padded; the order is shuffled by seed in
    every pass. A pure function of its arguments: the step number is the whole cursor.
    """
    plan: list[list[int]] = []
    tokens = epoch = 0
    while tokens < total_tokens:
        for batch in _epoch(examples, batch_tokens, random.Random(f"{seed}-{epoch}")):
            plan.append(batch)
            tokens += sum(len(examples[index].ids) for index in batch)
            if tokens >= total_tokens:
                break
        epoch += 1
    return plan


def _epoch(
    examples: Sequence[Example], batch_tokens: int, source: random.Random
) -> list[list[int]]:
    order = list(range(len(examples)))
    source.shuffle(order)
    order.sort(
        key=lambda index: len(examples[index].ids) // 16
    )  # stable: shuffled within like lengths
    batches: list[list[int]] = []
    current: list[int] = []
    widest = 0
    for index in order:
        length = len(examples[index].ids)
        if current and max(widest, length) * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current, widest = [], 0
        current.append(index)
        widest = max(widest, length)
    batches.append(current)
    source.shuffle(batches)
    return batches


def collate(examples: Sequence[Example], device: str | torch.device = "cpu") -> Batch:
    """Pad examples on the right to one width. Causal attention never looks at padding from a real token."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    real = torch.zeros(len(examples), width, dtype=torch.bool)
    counts = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        real[row, :length] = True
        counts[row, example.counted_from - 1 : length - 1] = True
    return Batch(ids.to(device), real.to(device), counts.to(device))
