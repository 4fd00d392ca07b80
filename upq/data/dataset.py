"""Token sequences for calibration, distillation and measurement.

Prompts without an answer are answered by the teacher itself, many side by side, and the answers are cached by
everything that they depend on; so a run needs nobody's post-training data, and a resumed run sees the same tokens.
Prompts that it writes itself (upq.data.own_prompts) are kept the same way: they are its answers to the user header.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from upq.config import RunConfig
from upq.context import RunContext
from upq.data import own_prompts
from upq.data.batches import Example
from upq.data.rows import Row, built_in_rows, read_rows
from upq.decode import answers, end_ids, engine_for
from upq.errors import UserError
from upq.models import LoadedModel, chat_ids

#: Answers that are stored at a time; what is begun and not stored is written again after an interruption.
#: A GPU, which writes hundreds side by side, would wait for the last ones of many small batches.
ANSWER_BATCH, GPU_ANSWER_BATCH = 64, 2048
ANSWERING = "the FP16 model answers the prompts"
ASKING = "the FP16 model writes prompts"


@dataclass(frozen=True)
class Dataset:
    """Training and held-out examples; no prompt stands in both."""

    train: list[Example]
    held_out: list[Example]


def build(config: RunConfig, loaded: LoadedModel, context: RunContext) -> Dataset:
    """Read, answer and tokenise what config.data asks for. Raises UserError("bad_dataset") and those of sources.

    The training examples of a run that reads none, such as round-to-nearest, are not written.
    """
    train_rows, held_out_rows = read_rows(config.data, config.seed, context.log)
    train_rows = train_rows if config.reads_data else []
    own = config.data.own_prompts if config.reads_data else 0
    repeats = config.data.answers_per_prompt if not all(map(_complete, train_rows)) else 1
    jobs = [(row, draw) for draw in range(repeats) for row in train_rows]
    to_write = len(held_out_rows) + sum(not _complete(row) for row, _ in jobs)
    total = to_write + own * (1 + config.data.answers_per_prompt)
    context.stage("data", total)
    writer = _Teacher(loaded, config, context)
    held_out = writer.held_out(held_out_rows)
    train = writer.training_examples(jobs)
    if own:
        own_rows = writer.own_rows(own, [*train_rows, *held_out_rows])
        draws = range(config.data.answers_per_prompt)
        train += writer.training_examples([(row, draw) for draw in draws for row in own_rows])
    if (config.reads_data and not train) or not held_out:
        raise UserError(
            "bad_dataset",
            "No usable sequence is left after tokenising; expected at least one.",
            "Raise data.sequence_tokens, so that there is room for an answer behind the prompt.",
        )
    counted = sum(example.counted for example in train)
    context.log(
        f"data: {len(train)} training sequences, {sum(len(example.ids) for example in train)} tokens, "
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


@dataclass(frozen=True)
class _Writing:
    """How the teacher continues prompts: at most so many tokens, until one of `ends`.

    detail: what it does, for people. counts: whether each text is a step of progress; not all prompts are kept.
    """

    tokens: int
    temperature: float
    ends: frozenset[int]
    detail: str = ANSWERING
    counts: bool = True


class _Teacher:
    """Turns rows into examples, answering those that have no answer."""

    def __init__(self, loaded: LoadedModel, config: RunConfig, context: RunContext) -> None:
        self.engine, self.tokenizer = engine_for(loaded.model), loaded.tokenizer
        self.config, self.context = config, context
        self.model_key = loaded.info.key
        self.ends = frozenset(end_ids(self.engine, self.tokenizer))
        self.batch = GPU_ANSWER_BATCH if self.engine.device.type == "cuda" else ANSWER_BATCH
        self.done = 0

    def held_out(self, rows: list[Row]) -> list[Example]:
        """The rows with the model's own greedy answers."""
        questions = [(_question(row), 0) for row in rows]
        return self._examples(questions, self._answering(self.config.measure.answer_tokens, 0.0))

    def training_examples(self, jobs: list[tuple[Row, int]]) -> list[Example]:
        """One example a job (row, draw), in order; rows with no room for an answer are left out."""
        data = self.config.data
        return self._examples(jobs, self._answering(data.answer_tokens, data.answer_temperature))

    def own_rows(self, wanted: int, others: list[Row]) -> list[Row]:
        """Prompts that the teacher writes, none of which is among the others or the built-in ones.

        Raises UserError: no_user_header, no_own_prompts.
        """
        turn = own_prompts.user_turn(self.tokenizer)
        ends = self.ends | turn.ends
        data = self.config.data
        longest = min(own_prompts.LONGEST, data.sequence_tokens // 2)
        writing = _Writing(longest, data.own_prompt_temperature, ends, ASKING, counts=False)
        before = self.done

        def draw(numbers: range, kept: int) -> list[str]:
            self.done = before + min(kept, wanted)
            self._progress(0, writing)
            self.context.check()
            drawn = self._batch([(turn.header, number) for number in numbers], writing)
            return [own_prompts.prompt_of(self.tokenizer, turn, written, ends) for written in drawn]

        known = (
            message["content"] for row in [*built_in_rows(), *others] for message in row.messages
        )
        batch = self.batch if wanted >= self.batch else ANSWER_BATCH
        prompts = own_prompts.new_prompts(wanted, batch, known, draw)
        self.done = before + wanted
        self.context.log(f"data: the FP16 model wrote {len(prompts)} prompts of {wanted}")
        return [Row(messages=({"role": "user", "content": text},)) for text in prompts]

    def _answering(self, tokens: int, temperature: float) -> _Writing:
        return _Writing(tokens, temperature, self.ends)

    def _examples(self, jobs: list[tuple[Row, int]], writing: _Writing) -> list[Example]:
        prompts: list[tuple[tuple[int, ...], int]] = []
        ready: list[Example | None] = []
        for row, draw in jobs:
            ready.append(self._finished(row) if _complete(row) else None)
            if ready[-1] is None:
                prompts.append((tuple(chat_ids(self.tokenizer, list(row.messages))), draw))
        written = iter(self._written(prompts, writing))
        asked = iter(prompts)
        made = [
            example if example is not None else self._joined(next(asked)[0], next(written))
            for example in ready
        ]
        return [example for example in made if example.counted > 0]

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

    def _written(
        self, prompts: list[tuple[tuple[int, ...], int]], writing: _Writing
    ) -> list[list[int]]:
        """What the teacher writes behind each prompt (token ids, draw), in order."""
        # Prompts of like length share a batch, which a resumed run writes again in the same company.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index][0]))
        written: dict[int, list[int]] = {}
        for start in range(0, len(order), self.batch):
            self.context.check()
            chosen = order[start : start + self.batch]
            batch = [prompts[index] for index in chosen]
            texts = self._batch(batch, writing)
            written.update(zip(chosen, texts, strict=True))
            self.done += len(batch)
            self._progress(0, writing)
        return [written[index] for index in range(len(prompts))]

    def _batch(
        self, batch: list[tuple[tuple[int, ...], int]], writing: _Writing
    ) -> list[list[int]]:
        settings = [
            writing.tokens,
            writing.temperature,
            self.config.seed,
            self.engine.backend,
            torch.get_num_threads(),
        ]
        key = _digest([self.model_key, settings, batch])
        names = [f"{position:03d}" for position in range(len(batch))]
        cached = self.context.cached_answers(key)
        if set(names) <= set(cached):
            return [cached[name] for name in names]
        prompts = dict(enumerate(ids for ids, _ in batch))
        written = self._write(prompts, writing, int(key[:8], 16))
        self.context.save_answers(key, {names[position]: written[position] for position in written})
        return [written[position] for position in range(len(batch))]

    def _write(
        self, prompts: dict[int, tuple[int, ...]], writing: _Writing, seed: int
    ) -> dict[int, list[int]]:
        found = answers(
            self.engine,
            prompts,
            set(writing.ends),
            max_new_tokens=writing.tokens,
            temperature=writing.temperature,
            seed=seed,
            check=lambda _: self.context.check(),
        )
        written: dict[int, list[int]] = {}
        counted, started = 0, time.monotonic()
        for position, answer in found:
            written[position] = answer
            counted += len(answer)
            speed = counted / (time.monotonic() - started)
            self._progress(len(written) if writing.counts else 0, writing, speed)
        return written

    def _progress(self, more: int, writing: _Writing, speed: float | None = None) -> None:
        self.context.progress(self.done + more, tokens_per_s=speed, detail=writing.detail)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
