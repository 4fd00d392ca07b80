"""One run of the queue as the database holds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlite_utils import Database

from upq.errors import UserError

#: Owns the runs that everybody sees.
HOUSE = ""
RunState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]


class Ending(NamedTuple):
    """How a worker was lost, a phrase, and what a person can do about it, a sentence."""

    note: str
    hint: str


#: Of a worker whose process is not there any more, and nobody saw how it ended.
GONE = Ending("the worker process is gone", "Resume the run to try again.")
#: Of a worker whose process may be there but gives no sign of life.
SILENT = Ending(
    "the worker stopped answering",
    "Resume the run to try again; the machine was suspended, or had no time for the worker.",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as it stands in the database. Times are unix seconds."""

    id: int
    kind: Literal["quantize", "check"]
    state: RunState
    name: str
    model: str
    method: str
    preset: str
    config: dict[str, Any]
    parent_id: int | None  #: the quantize run that a check looks at
    created_at: float
    started_at: float | None
    ended_at: float | None
    stage: str
    stage_step: int
    stage_total: int  #: 0: unknown
    detail: str
    tokens_per_s: float | None
    eta_s: float | None
    peak_bytes: int | None
    stages: dict[
        str, dict[str, Any]
    ]  #: name -> {"started", "ended" or None, "total", "seconds", "step"}
    cancel_requested: bool
    worker: str | None
    pid: int | None
    attempt: int  #: how often a worker has claimed the run
    crashes: int  #: how many workers died over it since it was last resumed by hand
    lease_s: float | None
    lease_until: float | None
    error_code: str
    error_message: str
    error_hint: str
    revision: int  #: grows with every change of the run, its metrics or its log
    worked_s: float  #: seconds that workers spent on the run, pauses not counted
    environments: list[dict[str, Any]]  #: where it was executed: upq.machine.environment
    gpu_peak_bytes: int | None
    note: str  #: of the people who made the run, some lines
    starred: bool
    aside_for: int | None  #: the check that it stepped aside for, until it goes on
    aside_at_s: float | None  #: worked_s when it last stepped aside
    owner: str = HOUSE  #: or a visitor of an app that is open to strangers

    @property
    def has_checkpoint(self) -> bool:
        """Whether it would go on from work that is kept: a finished block of a quantization, an outcome of a check."""
        if self.kind == "check":
            return self.stage_step > 0
        later = self.stages.keys() - {"load", "data", FIRST_TRAINED}
        blocks = self.stages.get(FIRST_TRAINED, {}).get("step", 0)
        return bool(later or blocks) or (self.stage == FIRST_TRAINED and self.stage_step > 0)


#: The stage whose blocks are the first checkpoints of a quantization.
FIRST_TRAINED = "int4"
#: The largest number that SQLite gives a row.
LARGEST_ID = 2**63 - 1


def find_run(db: Database, run_id: int) -> Run:
    """The run with this id. Raises UserError("run_not_found")."""
    # SQLite itself refuses a number that it could not have given.
    is_id = 0 < run_id <= LARGEST_ID
    found = list(db.query("SELECT * FROM runs WHERE id = ?", [run_id])) if is_id else []
    if not found:
        raise run_not_found(run_id)
    return from_row(found[0])


def require_ended(db: Database, run_id: int) -> None:
    """Raise UserError where a run cannot be deleted: run_not_found; run_is_running, which is said of its checks too."""
    find_run(db, run_id)
    live = list(
        db.query(
            "SELECT id, state FROM runs WHERE (id = ? OR parent_id = ?) AND state IN ('queued', 'running')",
            [run_id, run_id],
        )
    )
    if live:
        raise UserError(
            "run_is_running",
            f"Run {live[0]['id']} is {live[0]['state']}, so run {run_id} cannot be deleted.",
            "Cancel it first.",
        )


def run_not_found(run_id: int) -> UserError:
    """The error of a run that is not there, or not there for whoever asks."""
    return UserError("run_not_found", f"There is no run {run_id}.", "It may have been deleted.")


def running_runs(db: Database) -> list[Run]:
    """The runs that are marked as running, oldest first."""
    found = db.query("SELECT * FROM runs WHERE state = 'running' ORDER BY id")
    return [from_row(row) for row in found]


def from_row(row: dict[str, Any]) -> Run:
    """A row of the table `runs`."""
    decoded = {
        "config": json.loads(row["config"]),
        "stages": json.loads(row["stages"]),
        "environments": json.loads(row["environments"]),
        "cancel_requested": bool(row["cancel_requested"]),
        "starred": bool(row["starred"]),
    }
    return Run(**{**row, **decoded})
