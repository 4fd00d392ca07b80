"""What a visitor may do with a run. All that shows, changes or hands out runs asks here.

A run belongs to the house, such as the one that ships with the app, or to one visitor. What is not theirs is for
visitors as if it were not there.
"""

from __future__ import annotations

from upq.errors import UserError
from upq.store import HOUSE, Run, run_not_found


def may_see(visitor: str, run: Run) -> bool:
    """Whether a visitor may see a run, and use what it left."""
    return run.owner in (HOUSE, visitor)


def may_change(visitor: str, run: Run) -> bool:
    """Whether a visitor may cancel, resume or delete a run, and delete what was made of it."""
    return run.owner == visitor


def require_sight(visitor: str, run: Run) -> None:
    """Raises UserError("run_not_found") for the run of somebody else."""
    if not may_see(visitor, run):
        raise run_not_found(run.id)


def require_change(visitor: str, run: Run) -> None:
    """Raises UserError: run_not_found, and not_yours for a run that everybody shares."""
    require_sight(visitor, run)
    if not may_change(visitor, run):
        raise UserError(
            "not_yours",
            f"Run {run.id} is there for all visitors, so none of them can change it.",
            "Start a run of your own.",
        )
