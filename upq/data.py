"""Token sequences for calibration, distillation and measurement.

Prompts without an answer are answered by the teacher itself, in batches, and the answers are cached by everything
that they depend on; so a run needs nobody's post-training data, and a resumed run sees the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from upq.config import RunConfig
from upq.context import RunContext
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids
from upq.sources import Row, read_rows

#: Prompts that the teacher answers at once.
ANSWER_BATCH = 32


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


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples; no prompt stands in both."""

    train: list[Example]
    held_out: list[Example]


def build(config: RunConfig, loaded: LoadedModel, context: RunContext) -> Dataset:
    """Read, answer and tokenise what config.data asks for. Raises UserError("bad_dataset") and those of sources."""
    train_rows, held_out_rows = read_rows(config.data, config.seed)
    repeats = config.data.answers_per_prompt if not all(map(_complete, train_rows)) else 1
    jobs = [(row, draw) for draw in range(repeats) for row in train_rows]
    context.stage(
        "data", _answer_batches(jobs) + _answer_batches([(row, 0) for row in held_out_rows])
    )
    writer = _Teacher(loaded, config, context)
    held_out = writer.held_out(held_out_rows)
    train = writer.examples(jobs, config.data.answer_tokens, config.data.answer_temperature)
    if not train or not held_out:
        raise UserError(
            "bad_dataset",
            "No usable sequence is left after tokenising; expected at least one.",
            "Raise data.sequence_tokens, so that there is room for an answer behind the prompt.",
        )
    counted = sum(example.counted for example in train)
    context.log(
        f"data: {len(train)} training sequences, {sum(len(one.ids) for one in train)} tokens, "
        f"{counted} of them counted; {len(held_out)} held-out sequences"
    )
    return Dataset(train, held_out)


def held_out(config: RunConfig, loaded: LoadedModel, context: RunContext) -> list[Example]:
    """Only the held-out examples of `build`, for measuring again."""
    _, rows = read_rows(config.data, config.seed)
    return _Teacher(loaded, config, context).held_out(rows)


def _complete(row: Row) -> bool:
    return bool(row.text) or row.has_answer


def _question(row: Row) -> Row:
    """The row without its answer: held-out answers are always the FP16 model's own."""
    return Row(messages=row.messages[:-1]) if row.has_answer else row


def _answer_batches(jobs: list[tuple[Row, int]]) -> int:
    open_jobs = sum(not _complete(row) for row, _ in jobs)
    return -(-open_jobs // ANSWER_BATCH)


class _Teacher:
    """Turns rows into examples, answering those that have no answer."""

    def __init__(self, loaded: LoadedModel, config: RunConfig, context: RunContext) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.config, self.context = config, context
        self.model_key = loaded.info.key
        self.batches_done = 0

    def held_out(self, rows: list[Row]) -> list[Example]:
        """The rows with the model's own greedy answers."""
        questions = [(_question(row), 0) for row in rows]
        return self.examples(questions, self.config.measure.answer_tokens, temperature=0.0)

    def examples(
        self, jobs: list[tuple[Row, int]], answer_tokens: int, temperature: float
    ) -> list[Example]:
        """One example a job (row, draw), in order; rows with no room for an answer are left out."""
        prompts: list[tuple[tuple[int, ...], int]] = []
        ready: list[Example | None] = []
        for row, draw in jobs:
            ready.append(self._finished(row) if _complete(row) else None)
            if ready[-1] is None:
                prompts.append((tuple(chat_ids(self.tokenizer, list(row.messages))), draw))
        answers = iter(self._answers(prompts, answer_tokens, temperature))
        asked = iter(prompts)
        made = [
            one if one is not None else self._joined(next(asked)[0], next(answers)) for one in ready
        ]
        return [one for one in made if one.counted > 0]

    def _finished(self, row: Row) -> Example:
        if row.text:
            ids = self.tokenizer(row.text, truncation=False)["input_ids"]
            return self._cut(ids, 1)
        prompt = chat_ids(self.tokenizer, list(row.messages[:-1]))
        whole = chat_ids(self.tokenizer, list(row.messages), add_generation_prompt=False)
        return self._cut(whole, len(prompt))

    def _joined(self, prompt: Sequence[int], answer: Sequence[int]) -> Example:
        return self._cut([*prompt, *answer], len(prompt))

    def _cut(self, ids: Sequence[int], counted_from: int) -> Example:
        kept = tuple(ids[: self.config.data.sequence_tokens])
        return Example(kept, min(max(counted_from, 1), len(kept)))

    def _answers(
        self, prompts: list[tuple[tuple[int, ...], int]], answer_tokens: int, temperature: float
    ) -> list[list[int]]:
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][0]))
        answers: dict[int, list[int]] = {}
        for start in range(0, len(order), ANSWER_BATCH):
            self.context.check()
            chosen = order[start : start + ANSWER_BATCH]
            batch = [prompts[index] for index in chosen]
            written = self._answer_batch(batch, answer_tokens, temperature)
            answers.update(zip(chosen, written, strict=True))
            self.batches_done += 1
            self.context.progress(self.batches_done, detail="the FP16 model answers the prompts")
        return [answers[index] for index in range(len(prompts))]

    def _answer_batch(
        self, batch: list[tuple[tuple[int, ...], int]], answer_tokens: int, temperature: float
    ) -> list[list[int]]:
        settings = [
            answer_tokens,
            temperature,
            self.config.seed,
            str(self.model.dtype),
            torch.get_num_threads(),
        ]
        key = _digest([self.model_key, settings, batch])
        names = [f"{position:03d}" for position in range(len(batch))]
        cached = self.context.cached_answers(key)
        if set(names) <= set(cached):
            return [cached[name] for name in names]
        prompts = [list(ids) for ids, _ in batch]
        answers = sample(
            self.model,
            self.tokenizer,
            prompts,
            answer_tokens,
            temperature,
            int(key[:8], 16),
            self.context.check,
        )
        self.context.save_answers(key, dict(zip(names, answers, strict=True)))
        return answers


class _Check(StoppingCriteria):
    """Asks `check` after every token; whatever it raises ends the generation."""

    def __init__(self, check: Any) -> None:
        self.check = check

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    check: Any,
) -> list[list[int]]:
    """Answers to a batch of token prompts, each cut after its end-of-sequence token. temperature 0 is greedy.

    `check()` is called once a token and may raise to stop.
    """
    torch.manual_seed(seed)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(one)) + one for one in prompts], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=model.device
    )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {
        "do_sample": False, "temperature": None, "top_k": None, "top_p": None
    }  # fmt: skip
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        stopping_criteria=StoppingCriteriaList([_Check(check)]),
        **sampling,
    )
    ends = end_ids(model, tokenizer)
    return [_until_end(answer, ends) for answer in out[:, width:].tolist()]


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Token ids that end an answer."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return {one for one in [*listed, tokenizer.eos_token_id] if one is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, one in enumerate(ids):
        if one in ends:
            return ids[: position + 1]
    return ids


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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
    for index in order:
        widest = max(len(examples[one].ids) for one in [*current, index])
        if current and widest * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    batches.append(current)
    source.shuffle(batches)
    return batches


def collate(examples: Sequence[Example], device: str | torch.device = "cpu") -> Batch:
    """Pad examples on the right to one width. Causal attention never looks at padding from a real token."""
    width = max(len(one.ids) for one in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    real = torch.zeros(len(examples), width, dtype=torch.bool)
    counts = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, one in enumerate(examples):
        length = len(one.ids)
        ids[row, :length] = torch.tensor(one.ids)
        real[row, :length] = True
        counts[row, one.counted_from - 1 : length - 1] = True
    return Batch(ids.to(device), real.to(device), counts.to(device))
