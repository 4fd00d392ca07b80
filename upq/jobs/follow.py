"""Queue something, keep a worker on it and follow it to its end: for programs that wait, as the command line does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upq.config import CheckConfig
from upq.evaluation import scores
from upq.jobs.supervisor import Supervisor
from upq.store import Run, Store, open_store

ENDED = ("done", "failed", "cancelled")
#: Seconds between two looks at a run.
LOOK_S = 0.5
#: So many of the last lines of its log are looked at.
LOG_LINES = 1000
#: Of a stage's steps every so many is shown.
SHOWN_STEPS = 10
#: Shows a line to whoever waits.
Show = Callable[[str], None]


def run_and_wait(
    folder: Path, start: Callable[[Store], int], show: Show, processes: int = 1
) -> Run:
    """Queue something with start(store), keep a worker on it, report its progress; returns the ended run.

    processes: how many train together where a stage allows it. Ctrl-C leaves the run interrupted and resumable.
    """
    store = open_store(folder)
    run_id = start(store)
    supervisor = Supervisor(store, folder, command=_joint_worker(folder, processes))
    supervisor.start()
    try:
        return _follow(store, run_id, show)
    finally:
        supervisor.stop()


def _joint_worker(folder: Path, processes: int) -> list[str] | None:
    """The command of a worker of several processes; None for the ordinary one."""
    if processes == 1:
        return None
    from upq.jobs import distributed  # noqa: PLC0415  needs accelerate, and is a program of its own

    return distributed.command(folder, processes)


def _follow(store: Store, run_id: int, show: Show) -> Run:
    shown, lines = "", 0
    while True:
        run = store.run(run_id)
        log = store.log_lines(run_id, limit=LOG_LINES)
        for _, line in log[lines:]:
            show(f"  {line}")
        lines = len(log)
        at = (
            f"{run.stage} {run.stage_step}/{run.stage_total}"
            if run.state == "running"
            else run.state
        )
        if at != shown and (run.stage_step % SHOWN_STEPS == 0 or run.state != "running"):
            show(f"run {run_id}: {at} {run.detail}")
            shown = at
        if run.state in ENDED:
            if run.error_message:
                show(f"{run.error_message} {run.error_hint}".strip())
            return run
        time.sleep(LOOK_S)


def summary(store: Store, run_id: int) -> dict[str, Any]:
    """The measurements of a run as `--json` gives them: model, artifacts, baselines."""
    run = store.run(run_id)
    rows = store.measurements(run_id)
    kept = store.artifacts(run_id)
    base = kept[0].manifest["base_model"] if kept else {"name": run.model, "reference_note": ""}
    return {
        "model": base["name"],
        "reference_note": base["reference_note"],
        "seconds": run.worked_s,
        "artifacts": [row for row in rows if not row["label"].startswith("RTN")],
        "baselines": [row for row in rows if row["label"].startswith("RTN")],
    }


def check(folder: Path, config: CheckConfig, show: Show) -> tuple[Run, list[dict[str, Any]]]:
    """Do a check run: (the run as it ended, a row of scores a precision as upq.evaluation.scores.rows gives them).

    One of the same config that did not come to its end is continued instead.
    """
    unfinished = [
        run.id
        for run in open_store(folder).runs(kind="check")
        if run.config == config.to_values() and run.state != "done"
    ]

    def start(store: Store) -> int:
        if not unfinished:
            return store.enqueue_check(config)
        if store.run(unfinished[0]).state in ("failed", "cancelled", "interrupted"):
            store.resume(unfinished[0])
        return unfinished[0]

    run = run_and_wait(folder, start, show)
    stored = open_store(folder).check_results(run.id)
    found = scores.outcomes(config.suite, stored)
    return run, scores.rows(config.suite, found)
