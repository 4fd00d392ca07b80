"""A prompt put to the models of a run, one of their answers read by all of them, and each judged by the instructions.

The command, the endpoint and the chat compare by these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upq.compare import (
    REFERENCE,
    Answer,
    Comparison,
    Instruction,
    Outcome,
    compare,
    instructions_of,
    outcomes,
)
from upq.config import PRECISIONS
from upq.decode import Decoding, Piece
from upq.errors import UserError
from upq.jobs.served import Models, Served
from upq.jobs.turns import answering
from upq.store import Run, Store

Conversation = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared: the precisions that read the answer of one of them to a message."""

    message: str
    system: str
    decoding: Decoding
    answer_of: str
    precisions: Sequence[str]

    @property
    def conversation(self) -> list[dict[str, str]]:
        """What the models read."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": self.message}]


@dataclass(frozen=True)
class Compared:
    """What came of a request.

    answers: by precision, as far as they were needed; judged: how each of them fared, for each of the instructions.
    """

    request: Request
    answers: dict[str, Piece]
    comparison: Comparison
    instructions: list[Instruction]
    judged: list[dict[str, Outcome]]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        asked = self.request
        return {
            "message": asked.message,
            "system": asked.system,
            "decoding": asdict(asked.decoding),
            "answer_of": asked.answer_of,
            "answers": {
                name: {"text": piece.text, "tokens": piece.tokens, "finish": piece.finish}
                for name, piece in self.answers.items()
            },
            "comparison": self.comparison.to_json(),
            "instructions": [
                {"words": one.words, "outcomes": {name: asdict(it) for name, it in found.items()}}
                for one, found in zip(self.instructions, self.judged, strict=True)
            ],
        }


def compared(models: Models, run: Run, request: Request) -> Compared:
    """Let the models of a run answer and compare them. Every model answers where there is an instruction to judge.

    Raises UserError: `artifact_not_found`, and as loading, decoding and `upq.compare.compare` do.
    """
    served = {
        name: models.get(run.id, name, run.model) for name in _present(models.store, run, request)
    }
    instructions = instructions_of(request.message)
    answers = {
        name: _answer(one, request)
        for name, one in served.items()
        if instructions or name == request.answer_of
    }
    answer = answers[request.answer_of]
    comparison = read(
        served,
        request.conversation,
        Answer(answer.text, ended=answer.finish == "stop", ids=answer.ids),
        request.decoding,
    )
    judged = outcomes(instructions, {name: piece.text for name, piece in answers.items()})
    return Compared(request, answers, comparison, instructions, judged)


def read(
    served: dict[str, Served], conversation: Conversation, answer: Answer, decoding: Decoding
) -> Comparison:
    """Let models read an answer that somebody waits to see compared; background work waits meanwhile."""
    with answering():
        return compare(served, conversation, answer, decoding)


def _answer(served: Served, request: Request) -> Piece:
    *_, last = served.answer(request.conversation, request.decoding)
    return last


def _present(store: Store, run: Run, request: Request) -> list[str]:
    """The precisions of a request that the run has, FP16 first. Raises UserError("artifact_not_found")."""
    there = {REFERENCE, *(row.precision for row in store.artifacts(run.id))}
    wanted = {REFERENCE, *request.precisions} & there
    if request.answer_of not in there or wanted == {REFERENCE}:
        missing = "models to compare" if wanted == {REFERENCE} else request.answer_of
        raise UserError(
            "artifact_not_found",
            f"Run {run.id} has no {missing}; expected INT4 or INT2 beside FP16.",
            "Wait until the run is done, or choose another one.",
        )
    return [name for name in PRECISIONS if name in wanted | {request.answer_of}]
