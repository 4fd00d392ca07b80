"""How much visitors may take of a machine that is everybody's. Each limit says itself in one sentence.

The owner of the app sets them by variables of the environment, whose names begin with UPQ_PUBLIC_.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from upq.config import METHODS, PRESETS, CheckConfig, RunConfig, preset, settings, with_settings
from upq.decode import Decoding
from upq.errors import UserError, shown
from upq.quantize.ready import with_savings

#: Suites that need no file and no download.
SUITES = ("builtin",)
#: How the settings end that `with_savings` chooses for a large model.
SAVINGS = (".optimizer_bits", ".checkpointing", ".teacher")
#: The time over which answers are counted, seconds.
RATE_S = 60.0
GB = 10**9
ELSEWHERE = "For all else run UPQ Studio on a machine of yours, or duplicate this Space."


@dataclass(frozen=True)
class Limits:
    """runs, exports: of one visitor, waiting or at work; queue: of all. answers: of one visitor in a minute.

    tokens: of one answer. disk_bytes: of all that visitors' runs leave.
    """

    models: tuple[str, ...] = ("bundled",)
    presets: tuple[str, ...] = ("smoke", "quick")
    runs: int = 1
    queue: int = 8
    exports: int = 1
    tokens: int = 512
    answers: int = 30
    disk_bytes: int = 5 * GB
    _asked: dict[str, deque[float]] = field(default_factory=dict, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """Read the limits. Raises UserError("bad_limit")."""
        usual = cls()
        return cls(
            models=_names(environment, "UPQ_PUBLIC_MODELS", usual.models, ()),
            presets=_names(environment, "UPQ_PUBLIC_PRESETS", usual.presets, PRESETS),
            runs=_count(environment, "UPQ_PUBLIC_RUNS", usual.runs),
            queue=_count(environment, "UPQ_PUBLIC_QUEUE", usual.queue),
            exports=_count(environment, "UPQ_PUBLIC_EXPORTS", usual.exports),
            tokens=_count(environment, "UPQ_PUBLIC_TOKENS", usual.tokens),
            answers=_count(environment, "UPQ_PUBLIC_ANSWERS", usual.answers),
            disk_bytes=GB * _count(environment, "UPQ_PUBLIC_DISK_GB", usual.disk_bytes // GB),
        )

    @property
    def words(self) -> tuple[str, str]:
        """What every visitor is told: what there is to have, and what becomes of it."""
        models = " or ".join(
            "the bundled model" if name == "bundled" else name for name in self.models
        )
        return (
            f"Visitors quantize {models} with preset {_or(self.presets)}, {self.runs} at a time; answers have up to"
            f" {self.tokens} tokens.",
            f"Only you see your runs. When they and those of others fill {self.disk_bytes / GB:.0f} GB, the oldest"
            " finished ones are deleted: take along what you want to keep.",
        )

    def judge_run(self, config: RunConfig) -> None:
        """Raises UserError("not_for_visitors") for a run that this machine does not do for visitors."""
        if config.model.source not in self.models:
            raise _refused(f"model is {shown(config.model.source)}", _or(self.models))
        if config.preset not in self.presets or config.method not in METHODS:
            raise _refused(f"preset is {shown(config.preset)}", _or(self.presets))
        chosen = {"model.source": config.model.source, "seed": config.seed}
        plain = with_settings(preset(config.preset, config.method), chosen)
        values, usual = dict(settings(config)), dict(settings(plain))
        changed = [name for name in usual if values[name]["value"] != usual[name]["value"]]
        chosen_for_them = all(name.endswith(SAVINGS) for name in changed)
        if changed and not (chosen_for_them and config == with_savings(plain)):
            raise _refused(f"{changed[0]} is changed", "a preset as it is, but for its seed")

    def judge_check(self, suite: str, path: str | None, max_tokens: int) -> None:
        """Raises UserError: not_for_visitors, answer_too_long."""
        if path:
            raise _refused(f"path is {shown(path)}", "none: visitors have no files here")
        if suite not in SUITES:
            raise _refused(f"suite is {shown(suite)}", _or(SUITES))
        self.judge_length(max_tokens)

    def judge_check_run(self, config: CheckConfig) -> None:
        """The same for a check as it is queued."""
        self.judge_check(config.suite, config.path, config.max_tokens)

    def judge_length(self, tokens: int) -> None:
        """Raises UserError("answer_too_long")."""
        if tokens > self.tokens:
            raise UserError(
                "answer_too_long",
                f"An answer of up to {tokens} tokens is asked for; visitors' answers have at most {self.tokens}.",
                "Lower the longest answer.",
            )

    def judge_answer(self, visitor: str, decoding: Decoding) -> None:
        """Count one more answer of a visitor. Raises UserError: answer_too_long, too_fast."""
        self.judge_length(decoding.max_new_tokens)
        now = time.monotonic()
        with self._lock:
            for name in [name for name, times in self._asked.items() if times[-1] < now - RATE_S]:
                del self._asked[name]
            times = self._asked.setdefault(visitor, deque(maxlen=self.answers))
            if len(times) == self.answers and times[0] > now - RATE_S:
                wait = times[0] + RATE_S - now
                raise UserError(
                    "too_fast",
                    f"You asked for {self.answers} answers within a minute, which is as many as a visitor gets.",
                    f"Ask again in {wait:.0f} s; each column is an answer.",
                )
            times.append(now)

    def judge_place(self, mine: int, all_of_them: int) -> None:
        """Whether one more run may wait. Raises UserError("too_many_waiting")."""
        if mine >= self.runs:
            raise UserError(
                "too_many_waiting",
                f"{mine} of your runs and checks wait or are at work; a visitor has {self.runs} at a time.",
                "Wait for the end, or cancel it.",
            )
        if all_of_them >= self.queue:
            raise UserError(
                "too_many_waiting",
                f"{all_of_them} runs wait or are at work, which is as many as there is room for.",
                "Try again in some minutes.",
            )


def _refused(found: str, expected: str) -> UserError:
    sentence = f"On this machine visitors cannot have that: {found}; expected {expected}."
    return UserError("not_for_visitors", sentence, ELSEWHERE)


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _names(
    environment: Mapping[str, str], name: str, usual: tuple[str, ...], known: tuple[str, ...]
) -> tuple[str, ...]:
    text = environment.get(name)
    if text is None:
        return usual
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or (known and not set(found) <= set(known)):
        expected = f"some of {', '.join(known)}" if known else "a comma-separated list"
        raise _bad_limit(name, text, expected)
    return found


def _count(environment: Mapping[str, str], name: str, usual: int) -> int:
    text = environment.get(name, str(usual))
    if not text.isascii() or not text.isdigit() or not int(text):
        raise _bad_limit(name, text, "a whole number of 1 or more")
    return int(text)


def _bad_limit(name: str, text: str, expected: str) -> UserError:
    return UserError(
        "bad_limit",
        f"{name} is {shown(text)}; expected {expected}.",
        "Mend or unset it.",
    )
