"""Fidelity to the FP16 model, teacher-forced on held-out FP16 answers: KL, top-1 agreement, perplexity.

All models are measured on the same tokens in the same dtype, so a difference is the quantization's alone. Logits are
float32: in 16 bits their rounding alone would part a model from itself. An engine that answers with a model by other
arithmetic, such as rounded activations, is measured beside it on these tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from upq.data import Batch, Example, collate
from upq.decode import Engine, Reader, diverged
from upq.errors import UserError
from upq.evaluation.intervals import bootstrap_mean
from upq.models import CHUNK_ROWS, head, last_hidden

#: Tokens in one forward pass of a measurement.
BATCH_TOKENS = 2048

#: KL, whether both have the same argmax, surprise of the next token: float32 (rows,) each.
_Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


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

    def as_served(self, engine: Engine) -> dict[str, Any]:
        """The measurement of the engine that answers, as further columns of the row of its model."""
        figures = {"served_kl": self.kl, "served_top1": self.top1, "served_ppl": self.ppl}
        return {**figures, "served_by": engine.backend}


class Reference:
    """The FP16 model's view of the held-out answers, computed once: hidden states at the counted positions."""

    def __init__(self, model: Any, examples: list[Example], check: Callable[[], None]) -> None:
        self.batches = _batches(examples, model.device)
        self.hidden = _hidden(model, self.batches, check)
        self.model = model

    def measure(self, model: Any, check: Callable[[], None]) -> Fidelity:
        """Fidelity of a model with the same tokenizer. Raises UserError("diverged") where it gives no number."""
        started = time.monotonic()
        sources = [] if model is self.model else [self._logits(model, check)]
        return self._compared(started, *sources)[0]

    def measure_both(
        self, model: Any, engine: Engine, check: Callable[[], None]
    ) -> tuple[Fidelity, Fidelity]:
        """Fidelity of a model and of an engine that answers with it, which computes on the device of the reference;
        the seconds of each are those of both. Raises UserError("diverged") where one gives no number.
        """
        started = time.monotonic()
        served = _served_logits(engine, self.batches, check)
        exact, rounded = self._compared(started, self._logits(model, check), served)
        return exact, rounded

    def _logits(self, model: Any, check: Callable[[], None]) -> Iterator[torch.Tensor]:
        """Logits (rows, vocabulary) of the counted positions, answer by answer, at most CHUNK_ROWS rows at a time."""
        hidden = self.hidden if model is self.model else _hidden(model, self.batches, check)
        to_logits = head(model, exact=True)
        for part, batch in zip(hidden, self.batches, strict=True):
            for rows in _by_answer(part, batch):
                yield to_logits(rows).float()

    @torch.no_grad()
    def _compared(self, started: float, *sources: Iterator[torch.Tensor]) -> list[Fidelity]:
        """Fidelity of what each source gives; without sources that of the reference itself.

        sources: logits as `_logits` gives them. started: when the measurement began, seconds of the monotonic clock.
        """
        followed = (rows for batch in self.batches for rows in _by_answer(batch.next_ids, batch))
        reference = self._logits(self.model, lambda: None)
        found: list[list[_Columns]] = [[] for _ in sources or [reference]]
        for next_ids, expected, *others in zip(followed, reference, *sources, strict=True):
            log_p = F.log_softmax(expected, -1)
            for columns, logits in zip(found, others or [expected], strict=True):
                columns.append(_compare(log_p, logits, next_ids))
        lengths = [count for batch in self.batches for count in batch.counts.sum(1).tolist()]
        return [_fidelity(columns, lengths, started) for columns in found]


def _fidelity(columns: list[_Columns], lengths: list[int], started: float) -> Fidelity:
    """The figures of one model. lengths: counted tokens of each answer."""
    kl, same, surprise = (torch.cat(column) for column in zip(*columns, strict=True))
    if not torch.isfinite(kl).all():
        raise UserError(
            "diverged", "The quantized model gives non-finite logits on the held-out answers."
        )
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


def _by_answer(counted: torch.Tensor, batch: Batch) -> Iterator[torch.Tensor]:
    """What stands at the counted positions of a batch, answer by answer, at most CHUNK_ROWS rows at a time."""
    for rows in counted.split(batch.counts.sum(1).tolist()):
        yield from rows.split(CHUNK_ROWS)


def _served_logits(
    engine: Engine, batches: list[Batch], check: Callable[[], None]
) -> Iterator[torch.Tensor]:
    """Logits of the counted positions as an engine gives them, in the pieces of `Reference._logits`."""
    reader = Reader(engine)
    for batch in batches:
        for ids, counts in zip(batch.ids, batch.counts, strict=True):
            check()
            for places in counts.nonzero().flatten().split(CHUNK_ROWS):
                read = ids[: int(places[-1]) + 1].tolist()
                logits = reader.logits(read, len(places))
                if not logits.isfinite().all():
                    raise diverged(engine, read)
                yield logits


def _compare(log_p: torch.Tensor, logits: torch.Tensor, next_ids: torch.Tensor) -> _Columns:
    """log_p: log-probabilities of the reference, (rows, vocabulary)."""
    log_q = F.log_softmax(logits, -1)
    same = (log_p.argmax(-1) == log_q.argmax(-1)).float()
    surprise = -log_q.gather(-1, next_ids.unsqueeze(-1)).squeeze(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), same, surprise
