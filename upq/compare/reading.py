"""One answer read by FP16 and by other precisions of a model: how far apart they are at each of its tokens.

Nothing is generated. Each model reads what it does not hold of the conversation and the answer and gives the
distribution of every next token (teacher forcing), so all of them are asked about the same text. Logits are compared a
few rows at a time: those of a whole answer never exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from upq.decode import Engine, Reader, diverged, nucleus
from upq.errors import UserError
from upq.models import longest_sequence

#: The precision that all others are compared with.
REFERENCE = "FP16"
#: Likeliest tokens that are told of each model.
LIKELIEST = 5
#: Rows of logits that an engine computes at once, at most, and how many values they may have together.
READ_ROWS, READ_VALUES = 128, 2**23
#: Rows that are compared at once, so that what is computed of them stays near the processor.
COMPARED_ROWS = 16
#: Columns of logits of which the largest is looked at first.
STRETCH = 512
#: What is known of tokenizers that were compared, as long as they live.
_VOCABULARIES: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Model(Protocol):
    """What is asked of a model that reads (upq.jobs.Served)."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Any: ...
    def reader(self) -> AbstractContextManager[Reader]: ...


@dataclass(frozen=True)
class Sampling:
    """How an answer was drawn; at a temperature of 0 nothing was."""

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def has_floor(self) -> bool:
        """Whether it is worked out how often two draws differ: a penalty makes that depend on all tokens before."""
        return self.temperature > 0 and self.repetition_penalty == 1


@dataclass(frozen=True)
class Seen:
    """What one model thinks at each token of an answer.

    likeliest: token ids, the likeliest first, and their probabilities; given: probability of the token that stands
    there; kl: KL(FP16 || model) in nats; flipped: whether the likeliest token is another than FP16's; differs: the
    share of draws in which a sample of FP16 and one of this model are different tokens, 1 - sum p q, and of FP16
    itself the noise floor 1 - sum p p; empty where Sampling has no floor.
    """

    likeliest: list[list[tuple[int, float]]]
    given: list[float]
    kl: list[float]
    flipped: list[bool]
    differs: list[float]

    @property
    def mean_kl(self) -> float:
        """Mean KL over the tokens, nats."""
        return sum(self.kl) / len(self.kl)

    @property
    def kl_p95(self) -> float:
        """The 95th percentile of KL, nats."""
        return torch.tensor(self.kl).quantile(0.95).item()

    @property
    def same_top1(self) -> float:
        """Share of tokens at which the likeliest one is FP16's."""
        return 1 - sum(self.flipped) / len(self.flipped)

    @property
    def first_flip(self) -> int | None:
        """Place of the first token that flipped, counted from 1; None where none did."""
        return self.flipped.index(True) + 1 if True in self.flipped else None

    @property
    def flip_words(self) -> str:
        """Say where the first flip is: "3 of 111", or "none"."""
        return f"{self.first_flip} of {len(self.kl)}" if self.first_flip else "none"

    @property
    def mean_differs(self) -> float | None:
        """Mean of `differs`; None where there are none."""
        return sum(self.differs) / len(self.differs) if self.differs else None

    def worst(self, count: int) -> list[int]:
        """Indices of the tokens of the largest KL, the largest first."""
        return sorted(range(len(self.kl)), key=lambda at: -self.kl[at])[:count]


@torch.inference_mode()
def read_answer(
    models: Mapping[str, Model],
    prompt: Sequence[int],
    answer: Sequence[int],
    sampling: Sampling | None = None,
) -> dict[str, Seen]:
    """What each model thinks at each token of an answer to a prompt; FP16 has to be among them, and is the reference.

    Raises UserError: `no_answer` for an answer without tokens, `tokenizers_differ`, `prompt_too_long`, `diverged`.
    """
    if not answer:
        raise UserError("no_answer", "The answer has no tokens to read.", "Ask for another one.")
    _vet(models, len(prompt) + len(answer))
    names = [REFERENCE, *(name for name in models if name != REFERENCE)]
    columns: dict[str, list[_Columns]] = {name: [] for name in names}
    first = 0
    with ExitStack() as stack:
        readers = {name: stack.enter_context(models[name].reader()) for name in names}
        for rows in _logits(readers, prompt, answer, len(models[REFERENCE].tokenizer)):
            last = first + len(rows[REFERENCE])
            given = torch.tensor(answer[first:last])
            for name, found in _compared(rows, given, sampling or Sampling()):
                if not found.kl.isfinite().all():
                    raise diverged(models[name].engine, [*prompt, *answer[: last - 1]])
                columns[name].append(found)
            first = last
    return {name: _seen(parts) for name, parts in columns.items()}


class _Largest(NamedTuple):
    values: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class _Columns:
    """The figures of some rows, as tensors with one row a token."""

    tokens: torch.Tensor
    shares: torch.Tensor
    given: torch.Tensor
    kl: torch.Tensor
    flipped: torch.Tensor
    differs: torch.Tensor


def _vet(models: Mapping[str, Model], length: int) -> None:
    reference = _vocabulary(models[REFERENCE].tokenizer)
    for name, model in models.items():
        limit = longest_sequence(model.engine.config)
        if length > limit:
            raise UserError(
                "prompt_too_long",
                f"Conversation and answer have {length} tokens; the model reads at most {limit}.",
                "Compare a shorter answer.",
            )
        if _vocabulary(model.tokenizer) != reference:
            raise _differ(name)


def _vocabulary(tokenizer: Any) -> int:
    """A number that tells which token has which id; the list of them takes longer than all else to make."""
    if tokenizer not in _VOCABULARIES:
        _VOCABULARIES[tokenizer] = hash(frozenset(tokenizer.get_vocab().items()))
    return _VOCABULARIES[tokenizer]


def _differ(name: str) -> UserError:
    return UserError(
        "tokenizers_differ",
        f"{name} has other tokens than {REFERENCE}; expected one tokenizer, as both are asked about the same tokens.",
        "Compare models that were made of one another.",
    )


def _logits(
    readers: Mapping[str, Reader], prompt: Sequence[int], answer: Sequence[int], vocabulary: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Logits (rows, vocabulary) of each model for some tokens of the answer at a time, in their order.

    Raises UserError `tokenizers_differ` where one model has more of them than another.
    """
    ids = [*prompt, *answer]
    for reader in readers.values():
        reader.reserve(len(ids))
    most = max(1, min(READ_ROWS, READ_VALUES // vocabulary))
    for first in range(len(prompt), len(ids), most):
        last = min(first + most, len(ids))
        read = ids[: last - 1]  # the token before tells of the next one
        found = {name: reader.logits(read, last - first) for name, reader in readers.items()}
        for name, logits in found.items():
            if logits.shape != found[REFERENCE].shape:
                raise _differ(name)
        for rows in range(0, last - first, COMPARED_ROWS):
            yield {
                name: logits[rows : rows + COMPARED_ROWS].cpu() for name, logits in found.items()
            }


def _compared(
    rows: Mapping[str, torch.Tensor], given: torch.Tensor, sampling: Sampling
) -> Iterator[tuple[str, _Columns]]:
    """The figures of each model for logits (rows, vocabulary). given: the token that stands at each row."""
    logits = rows[REFERENCE]
    total = logits.logsumexp(-1, keepdim=True)
    p = (logits - total).exp()
    drawn = _drawn(logits, sampling) if sampling.has_floor else None
    largest = {name: _largest(one) for name, one in rows.items()}
    for name, others in rows.items():
        other_total = others.logsumexp(-1, keepdim=True)
        # sum p (log p - log q), where log p is a logit less the logarithm of all their exponentials
        kl = (p * (logits - others)).sum(-1) - (total - other_total).squeeze(-1)
        best = largest[name]
        known = others.gather(-1, given.unsqueeze(-1)) - other_total
        differs = p.new_empty(0)
        if drawn is not None:
            differs = 1 - (drawn * _drawn(others, sampling)).sum(-1)
        yield (
            name,
            _Columns(
                tokens=best.indices,
                shares=(best.values - other_total).exp(),
                given=known.exp().squeeze(-1),
                kl=kl.clamp_min(0),  # rounding alone makes it negative
                flipped=best.indices[:, 0] != largest[REFERENCE].indices[:, 0],
                differs=differs,
            ),
        )


def _largest(logits: torch.Tensor) -> _Largest:
    """The LIKELIEST largest values of each row and where they are, the largest first.

    They lie in those stretches of the row whose maxima are largest, and to find these is several times faster.
    """
    rest = -logits.shape[-1] % STRETCH
    stretches = F.pad(logits, (0, rest), value=-torch.inf) if rest else logits
    stretches = stretches.unflatten(-1, (-1, STRETCH))
    count = min(LIKELIEST, stretches.shape[-2])
    chosen = stretches.amax(-1).topk(count).indices
    near = stretches.gather(-2, chosen.unsqueeze(-1).expand(-1, -1, STRETCH)).flatten(-2)
    best = near.topk(LIKELIEST)
    return _Largest(
        best.values,
        chosen.gather(-1, best.indices // STRETCH) * STRETCH + best.indices % STRETCH,
    )


def _drawn(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution (rows, vocabulary) that samples are drawn from."""
    shares = torch.softmax(logits / sampling.temperature, -1)
    if sampling.top_p == 1:
        return shares
    ordered, tokens = shares.sort(descending=True)
    kept = nucleus(ordered, sampling.top_p)
    return torch.zeros_like(shares).scatter(-1, tokens, kept / kept.sum(-1, keepdim=True))


def _seen(parts: Sequence[_Columns]) -> Seen:
    tokens, shares, given, kl, flipped, differs = (
        torch.cat([getattr(part, name) for part in parts]).tolist()
        for name in ("tokens", "shares", "given", "kl", "flipped", "differs")
    )
    likeliest = [list(zip(*pair, strict=True)) for pair in zip(tokens, shares, strict=True)]
    return Seen(likeliest, given, kl, flipped, differs)
