"""Perplexity of WikiText-2 by the protocol of the GPTQ and EfficientQAT code: the test split joined into one text,
cut into chunks that do not overlap, every chunk read on its own, what does not fill a chunk left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from upq.errors import UserError
from upq.evaluation.intervals import Interval, bootstrap_mean
from upq.evaluation.suite_data import hub_rows, read_suite_file
from upq.models import CHUNK_ROWS, head, last_hidden, longest_sequence

HUB_DATASET = ("Salesforce/wikitext", "wikitext-2-raw-v1")
#: Tokens of a chunk.
CONTEXT = 2048


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Negative log-likelihood of a chunk in nats, summed over its `tokens` predictions: all tokens but the first."""

    nll: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Chunk:
        return cls(**data)


def joined_text(path: Path | None = None) -> str:
    """The test split: a file with its raw bytes (wiki.test.raw), else the hub's rows, joined by blank lines.

    The hub has a row for each line, line break kept, and an empty one for each blank line; a file is cut in the same
    way. Raises UserError: bad_suite, offline.
    """
    rows: Iterable[str]
    if path is None:
        rows = hub_rows(HUB_DATASET[0], "test", HUB_DATASET[1])["text"]
    else:
        lines = read_suite_file(path).split("\n")
        # Behind the last line break there is nothing, not a blank line.
        ended = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        rows = [row if row.strip() else "" for row in (ended if lines[-1] else ended[:-1])]
    return "\n\n".join(rows)


def chunks(tokenizer: Any, text: str, context: int = CONTEXT, limit: int = 0) -> list[list[int]]:
    """The first `limit` (0: all) whole chunks of `context` tokens. Raises UserError("bad_suite") if there is none."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    found = [ids[at : at + context] for at in range(0, len(ids) - context + 1, context)]
    if not found:
        message = f"The text has {len(ids)} tokens, less than one chunk of {context}."
        raise UserError("bad_suite", message, "Give the whole test split of WikiText-2.")
    return found[: limit or None]


def context_of(model: Any) -> int:
    """CONTEXT, or what the model reads at most if that is less."""
    return min(CONTEXT, longest_sequence(model.config))


@torch.no_grad()
def read_chunk(model: Any, ids: Sequence[int]) -> Chunk:
    """Read a chunk with a transformers model, in its dtype; logits in float32, the sum of their losses in float64.

    Raises UserError("diverged") where it gives no number.
    """
    piece = torch.tensor([list(ids)], device=model.device)
    hidden, targets = last_hidden(model, piece)[0, :-1], piece[0, 1:]
    to_logits, total = head(model, exact=True), torch.zeros((), dtype=torch.float64)
    for row in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(row, row + CHUNK_ROWS)
        logits = to_logits(hidden[rows]).float()
        losses = F.cross_entropy(logits, targets[rows], reduction="none")
        total += losses.double().sum().cpu()
    if not math.isfinite(total):
        raise UserError("diverged", "The model gives non-finite logits on WikiText-2.")
    return Chunk(nll=total.item(), tokens=len(targets))


def perplexity(results: Sequence[Chunk]) -> tuple[float, Interval]:
    """exp of the mean over tokens, and its 95 % bootstrap interval over chunks."""
    sums, counts = [chunk.nll for chunk in results], [chunk.tokens for chunk in results]
    low, high = bootstrap_mean(sums, counts)
    return _exp(sum(sums) / sum(counts)), (_exp(low), _exp(high))


def difference(before: Sequence[Chunk], after: Sequence[Chunk]) -> tuple[float, Interval]:
    """How many nats a token the second model loses, chunk by chunk, and the 95 % bootstrap interval. The chunks are
    the same, so this interval is far narrower than the two of the perplexities.
    """
    lost = [new.nll - old.nll for old, new in zip(before, after, strict=True)]
    counts = [chunk.tokens for chunk in before]
    return sum(lost) / sum(counts), bootstrap_mean(lost, counts)


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))
