"""What a check run may be asked for: a suite, how much of it, and the precisions that it is put to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upq.config.precision import PRECISIONS
from upq.errors import UserError, shown

#: The suites that a check run can put to a model (upq.evaluation.suites).
SUITES = ("builtin", "ifeval", "mmlu", "wikitext2")
#: What `python -m upq eval` measures: fidelity to FP16, or a suite with published scores.
TASKS = ("fidelity", "wikitext2", "mmlu", "ifeval")


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """One check run, complete: the same config and models give the same outcomes.

    suite: one of SUITES. precisions: names out of PRECISIONS, in the order in which they are checked. run_id: the run
    whose models are checked; None: there is none, and only FP16 of `model`, a model's source, can be. path: a local
    copy of the suite; None: from the hub, or our own. limit: so many first prompts or chunks; 0: all. per_subject: so
    many questions of each subject of MMLU; 0: all. max_tokens: the longest answer. seed: draws the questions of MMLU,
    and what the rules of IFEval leave to chance. Raises UserError("bad_suite") or UserError("bad_precision").
    """

    suite: str
    precisions: tuple[str, ...]
    run_id: int | None
    model: str
    path: str | None = None
    limit: int = 0
    per_subject: int = 0
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise UserError(
                "bad_suite", f"suite is {shown(self.suite)}; expected one of {', '.join(SUITES)}."
            )
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise UserError(
                    "bad_precision",
                    f"precision is {shown(precision)}; expected one of {', '.join(PRECISIONS)}.",
                )

    def to_values(self) -> dict[str, Any]:
        """The config as plain JSON values, as the store keeps it."""
        return dataclasses.asdict(self) | {"precisions": list(self.precisions)}

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> CheckConfig:
        """Read what to_values wrote, here or in an older version, which left out what it did not know."""
        return CheckConfig(**{**values, "precisions": tuple(values["precisions"])})
