"""Fidelity to the FP16 model, teacher-forced on held-out FP16 answers: KL, top-1 agreement, perplexity.

All models are measured on the same tokens in the same dtype, so a difference is the quantization's alone. Logits are
float32: in 16 bits their rounding alone would part a model from itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from upq.data import Batch, Example, collate
from upq.errors import UserError
from upq.evaluation.intervals import bootstrap_mean
from upq.models import CHUNK_ROWS, head, last_hidden

#: Tokens in one forward pass of a measurement.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Fidelity:
    """Means over the counted tokens. kl: KL(FP16 || model) in nats; kl_p95: its 95th percentile; top1: share of
    positions with the same argmax; ppl: perplexity of the held-out FP16 answers; tokens: how many counted.

    kl_low, kl_high: 95 % bootstrap interval of kl, over answers. agreed_mean, agreed_median: over answers, how many
    counted tokens lie before the first one whose argmax differs from FP16's, reading FP16's answer (teacher-forced,
    so this is where greedy decoding of that prompt would part from FP16); an answer without one counts whole.
    """

    kl: float
    kl_p95: float
    top1: float
    ppl: float
    tokens: int
    seconds: float
    kl_low: float
    kl_high: float
    agreed_mean: float
    agreed_median: float
    answers: int

    def row(self, label: str, precision: str, **extra: Any) -> dict[str, Any]:
        """The measurement as a row for RunContext.save_measurements."""
        return {"label": label, "precision": precision, **asdict(self), **extra}


class Reference:
    """The FP16 model's view of the held-out answers, computed once: hidden states at the counted positions."""

    def __init__(self, model: Any, examples: list[Example], check: Callable[[], None]) -> None:
        self.batches = _batches(examples, model.device)
        self.head = head(model, exact=True)
        self.hidden = _hidden(model, self.batches, check)
        self.model = model

    @torch.no_grad()
    def measure(self, model: Any, check: Callable[[], None]) -> Fidelity:
        """Fidelity of a model with the same tokenizer. Raises UserError("diverged") where it gives no number."""
        started = time.monotonic()
        hidden = self.hidden if model is self.model else _hidden(model, self.batches, check)
        model_head = head(model, exact=True)
        parts = [
            _compare(self.head, ours, model_head, theirs, batch)
            for ours, theirs, batch in zip(self.hidden, hidden, self.batches, strict=True)
        ]
        kl, same, surprise = (torch.cat(column) for column in zip(*parts, strict=True))
        if not torch.isfinite(kl).all():
            raise UserError(
                "diverged", "The quantized model gives non-finite logits on the held-out answers."
            )
        lengths = [count for batch in self.batches for count in batch.counts.sum(1).tolist()]
        low, high = bootstrap_mean([answer.sum().item() for answer in kl.split(lengths)], lengths)
        agreed = torch.tensor(list(map(_agreed, same.split(lengths))), dtype=torch.float64)
        return Fidelity(
            kl=kl.mean().item(),
            kl_p95=kl.quantile(0.95).item(),
            top1=same.mean().item(),
            ppl=math.exp(min(surprise.mean().item(), 700.0)),
            tokens=len(kl),
            seconds=time.monotonic() - started,
            kl_low=low,
            kl_high=high,
            agreed_mean=agreed.mean().item(),
            agreed_median=agreed.quantile(0.5).item(),
            answers=len(lengths),
        )


def _agreed(same: torch.Tensor) -> int:
    """Positions before the first disagreement; all of them where there is none."""
    return int(same.cumprod(0).sum())


def _batches(examples: list[Example], device: torch.device) -> list[Batch]:
    ordered = sorted(examples, key=lambda example: len(example.ids))
    batches: list[list[Example]] = [[]]
    for example in ordered:
        if batches[-1] and len(example.ids) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(example)
    return [collate(rows, device) for rows in batches]


@torch.no_grad()
def _hidden(model: Any, batches: list[Batch], check: Callable[[], None]) -> list[torch.Tensor]:
    found = []
    for batch in batches:
        check()
        found.append(last_hidden(model, batch.ids)[batch.counts])
    return found


def _compare(
    reference_head: Any,
    reference: torch.Tensor,
    model_head: Any,
    hidden: torch.Tensor,
    batch: Batch,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(KL, same argmax, surprise of the next token) per counted position, float32."""
    kl, same, surprise = [], [], []
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        log_p = F.log_softmax(reference_head(reference[rows]).float(), -1)
        log_q = F.log_softmax(model_head(hidden[rows]).float(), -1)
        same.append((log_p.argmax(-1) == log_q.argmax(-1)).float())
        surprise.append(-log_q.gather(-1, batch.next_ids[rows].unsqueeze(-1)).squeeze(-1))
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(kl), torch.cat(same), torch.cat(surprise)
