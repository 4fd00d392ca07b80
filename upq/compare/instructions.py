"""Which instructions of a prompt an answer followed: those of a suite's prompt, else those that plain English words.

Judged by the rules of the checks, in their process that can be killed (upq.evaluation.ifeval).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from upq.compare.wordings import Instruction, wordings
from upq.errors import UserError
from upq.evaluation import CheckPrompt, builtin_suite, ifeval_suite, judge, local_copy


@dataclass(frozen=True)
class Outcome:
    """Whether an answer followed an instruction, and why; None: it could not be judged."""

    followed: bool | None
    reason: str


def instructions_of(prompt: str) -> list[Instruction]:
    """The instructions of a prompt that can be judged; of a prompt that is a suite's, exactly that suite's."""
    item = _suite_prompts().get(prompt.strip())
    if item is None:
        return wordings(prompt)
    named = zip(item.instruction_ids, item.kwargs, strict=True)
    return [Instruction(_name(kind), ((kind, values),)) for kind, values in named]


def outcomes(
    instructions: list[Instruction], answers: Mapping[str, str]
) -> list[dict[str, Outcome]]:
    """For each instruction how each answer, by precision, fared."""
    return [
        {precision: _outcome(instruction, text) for precision, text in answers.items()}
        for instruction in instructions
    ]


def _outcome(instruction: Instruction, text: str) -> Outcome:
    """An instruction is followed where all of its rules are; the reason is that of the first that is not."""
    prompt = CheckPrompt(
        key=0,
        prompt=instruction.words,
        instruction_ids=tuple(kind for kind, _ in instruction.rules),
        kwargs=tuple(values for _, values in instruction.rules),
    )
    result = judge(prompt, text)
    failed = [verdict for verdict in result.verdicts if not verdict.strict]
    return Outcome(result.strict, (failed or list(result.verdicts))[0].reason)


@lru_cache(maxsize=1)
def _suite_prompts() -> dict[str, CheckPrompt]:
    """The prompts of the built-in suite and, where there is a local copy, of IFEval; read once."""
    items = builtin_suite()
    if path := local_copy("ifeval"):
        with suppress(UserError):  # a broken copy is told of where the suite is run
            items += ifeval_suite(Path(path))
    return {item.prompt.strip(): item for item in reversed(items)}


def _name(kind: str) -> str:
    return kind.split(":")[-1].replace("_", " ")
