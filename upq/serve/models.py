"""The models of a run by the names that programs ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upq.config import Precision
from upq.errors import UserError
from upq.store import Store


@dataclass(frozen=True)
class Offered:
    """One precision of a run. source: where its FP16 model comes from. created: unix seconds."""

    run_id: int
    precision: str
    source: str
    created: int

    @property
    def id(self) -> str:
        """What programs call it, such as upq-3-int2."""
        return f"upq-{self.run_id}-{self.precision.lower()}"

    @property
    def described(self) -> dict[str, Any]:
        """The model as OpenAI's list has it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "upq-studio",
        }


def offered(store: Store, run_id: int, precisions: Sequence[str]) -> dict[str, Offered]:
    """Id -> the models of a run. Raises UserError: run_not_found, artifact_not_found."""
    run = store.run(run_id)
    made = {row.precision: row.created_at for row in store.artifacts(run_id)}
    made[Precision.FP16.name] = run.created_at
    if missing := [precision for precision in precisions if precision not in made]:
        raise UserError(
            "artifact_not_found",
            f"Run {run_id} has no {' and no '.join(missing)} model.",
            "Choose a run that is done, or wait for this one.",
        )
    found = [Offered(run_id, name, run.model, int(made[name])) for name in precisions]
    return {model.id: model for model in found}
