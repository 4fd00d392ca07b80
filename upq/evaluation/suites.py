"""A check run: a suite put to each precision of a run, every outcome stored as soon as it is known.

Outcomes are pure functions of the model, the suite and the seed, so a run that was stopped anywhere goes on to the
same bits. Stored ones are never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from upq.config import CheckConfig
from upq.decode import answers, end_ids
from upq.evaluation import ifeval, mmlu, wikitext
from upq.evaluation.endings import ending
from upq.models import chat_ids

#: What decoding and reading call with the tokens done so far; may raise.
Step = Callable[[int], None]
#: Position in the suite, and the outcome as JSON.
Outcomes = Iterator[tuple[int, dict[str, Any]]]


class CheckContext(Protocol):
    """What a check run needs beside progress and stopping."""

    def check(self) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def progress(
        self, step: int, *, tokens_per_s: float | None = None, detail: str = ""
    ) -> None: ...
    def save_check_result(self, precision: str, position: int, result: dict[str, Any]) -> None: ...
    def check_results(self) -> list[dict[str, Any]]: ...


class Source(Protocol):
    """Where the models come from (upq.jobs.served.Models)."""

    def get(self, run_id: int | None, precision: str, source: str, /) -> Any:
        """The model as the chat serves it."""
        ...

    def whole(self, run_id: int | None, precision: str, source: str, /) -> tuple[Any, Any]:
        """(transformers model in the compute dtype, tokenizer)."""
        ...


class Instructions:
    """IFEval-style prompts, answered greedily and many side by side, judged by programs."""

    def __init__(self, config: CheckConfig, models: Source) -> None:
        self.config, self.models = config, models

    @cached_property
    def items(self) -> list[ifeval.CheckPrompt]:
        if self.config.suite == "builtin":
            return ifeval.builtin_suite()[: self.config.limit or None]
        return ifeval.ifeval_suite(_path(self.config))[: self.config.limit or None]

    def outcomes(self, precision: str, wanted: Sequence[int], step: Step) -> Outcomes:
        served = self.models.get(*_model(self.config, precision))
        ids = {
            at: chat_ids(served.tokenizer, [{"role": "user", "content": self.items[at].prompt}])
            for at in wanted
        }
        ends, longest = end_ids(served.engine, served.tokenizer), self.config.max_tokens
        for at, answer in answers(served.engine, ids, ends, max_new_tokens=longest, check=step):
            text = served.tokenizer.decode(answer, skip_special_tokens=True)
            judged = ifeval.judge(self.items[at], text, self.config.seed)
            yield at, replace(judged, ending=ending(answer, ends)).to_json()


class MultipleChoice:
    """MMLU, scored by letter."""

    def __init__(self, config: CheckConfig, models: Source) -> None:
        self.config, self.models = config, models
        self.exam = mmlu.exam(_path(config))

    @cached_property
    def items(self) -> list[mmlu.Question]:
        return self.exam.sample(self.config.per_subject, self.config.seed)

    def outcomes(self, precision: str, wanted: Sequence[int], step: Step) -> Outcomes:
        served = self.models.get(*_model(self.config, precision))
        engine, tokenizer = served.engine, served.tokenizer
        for at, marked in mmlu.marks(engine, tokenizer, self.exam, self.items, wanted, step):
            yield at, marked.to_json()


class WikiText:
    """WikiText-2, chunk by chunk."""

    def __init__(self, config: CheckConfig, models: Source) -> None:
        self.config, self.models = config, models

    @cached_property
    def items(self) -> list[list[int]]:
        model, tokenizer = self.models.whole(*_model(self.config, self.config.precisions[0]))
        text = wikitext.joined_text(_path(self.config))
        return wikitext.chunks(tokenizer, text, wikitext.context_of(model), self.config.limit)

    def outcomes(self, precision: str, wanted: Sequence[int], step: Step) -> Outcomes:
        model, _ = self.models.whole(*_model(self.config, precision))
        read = 0
        for at in wanted:
            step(read)
            yield at, wikitext.read_chunk(model, self.items[at]).to_json()
            read += len(self.items[at])


#: What puts each of upq.config.SUITES to a model.
KINDS: dict[str, type[Instructions] | type[MultipleChoice] | type[WikiText]] = {
    "builtin": Instructions,
    "ifeval": Instructions,
    "mmlu": MultipleChoice,
    "wikitext2": WikiText,
}


def run_check(config: CheckConfig, context: CheckContext, models: Source) -> None:
    """Put a suite to each precision of the config."""
    suite = KINDS[config.suite](config, models)
    done = {(row["precision"], row["position"]) for row in context.check_results()}
    total = len(suite.items) * len(config.precisions)
    context.stage("check", total)
    context.progress(len(done))
    for precision in config.precisions:
        wanted = [at for at in range(len(suite.items)) if (precision, at) not in done]
        if not wanted:
            continue
        step = _step(context, precision, done)
        for at, outcome in suite.outcomes(precision, wanted, step):
            context.save_check_result(precision, at, outcome)
            done.add((precision, at))
    context.progress(len(done))


def _step(context: CheckContext, precision: str, done: Sized) -> Step:
    """Reports speed and complete outcomes, and may stop the run."""
    started = time.monotonic()

    def step(tokens: int) -> None:
        context.check()
        speed = tokens / (time.monotonic() - started) if tokens else None
        context.progress(len(done), tokens_per_s=speed, detail=precision)

    return step


def _path(config: CheckConfig) -> Path | None:
    return Path(config.path) if config.path else None


def _model(config: CheckConfig, precision: str) -> tuple[int | None, str, str]:
    return config.run_id, precision, config.model
