"""One token drawn from logits; logits that are not numbers give none, and never the one that argmax names."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch


def pick(
    logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> int | None:
    """A token drawn by its logits (vocabulary,); None where they are not numbers: then neither is the one that argmax
    takes for the largest.
    """
    likeliest = int(logits.argmax())
    if not math.isfinite(logits[likeliest]):
        return None
    probabilities = torch.softmax(logits / temperature, -1) if temperature else logits
    # A temperature next to 0 sends the logits beyond what a number can be, and means the likeliest token.
    if temperature == 0 or not math.isfinite(probabilities[likeliest]):
        return likeliest
    if top_p == 1:
        return _draw(probabilities, generator)
    ordered, tokens = probabilities.sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < top_p)
    return int(tokens[_draw(kept, generator)])


def _draw(weights: torch.Tensor, generator: torch.Generator) -> int:
    """An index with the probability of its weight, by one random number; torch.multinomial draws one per weight."""
    ends = weights.double().cumsum(-1)
    point = torch.rand(1, dtype=ends.dtype, device=ends.device, generator=generator) * ends[-1]
    return min(int(torch.searchsorted(ends, point, right=True)), len(weights) - 1)


def penalised(logits: torch.Tensor, seen: Collection[int], penalty: float) -> torch.Tensor:
    """Logits (vocabulary,) in which tokens that were seen before are less likely, as transformers' repetition penalty
    has it: positive ones are divided by the penalty, negative ones multiplied. 1 changes nothing.
    """
    if penalty == 1:
        return logits
    tokens = torch.tensor(list(seen), device=logits.device)
    given = logits[tokens]
    return logits.index_copy(0, tokens, torch.where(given < 0, given * penalty, given / penalty))


def pick_rows(logits: torch.Tensor, temperature: float, points: torch.Tensor) -> torch.Tensor:
    """One token of each row of logits (rows, vocabulary), by its point between 0 and 1: (rows,) int64.

    -1 where the logits are not numbers: then so is the one that argmax takes for the largest.
    """
    likeliest = logits.argmax(-1)
    is_number = logits.gather(-1, likeliest.unsqueeze(-1)).squeeze(-1).isfinite()
    if temperature == 0:
        return likeliest.where(is_number, -1)
    ends = torch.softmax(logits / temperature, -1).double().cumsum(-1)
    wanted = points.to(ends.device).unsqueeze(1) * ends[:, -1:]
    drawn = torch.searchsorted(ends, wanted, right=True).squeeze(1).clamp_max(ends.shape[1] - 1)
    return drawn.where(is_number, -1)
