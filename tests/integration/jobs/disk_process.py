"""What the tests of the disk start on a file system of their own; the last line it prints is its result as JSON.

As a script: python disk_process.py FOLDER MODEL. FOLDER is on a small file system that nobody else writes to.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.helpers import digest, tiny_config
from upq.config import RunConfig
from upq.context import STAGES
from upq.errors import UserError
from upq.jobs.worker_context import WorkerContext, execute
from upq.quantize import pipeline
from upq.store import Store, open_store

#: What stays free, bytes: nothing at all, or enough for the database to say what happened.
LEFT_FREE = (0, 400_000)


class Filling(WorkerContext):
    """A context on whose disk there is no more space once a stage has begun."""

    full_in, left_free, ballast = "", 0, Path()

    def stage(self, name: str, total: int) -> None:
        super().stage(name, total)
        if name == self.full_in:
            fill(self.ballast, self.left_free)


def fill(ballast: Path, left_free: int) -> None:
    """Write until the file system is full, then give back so many bytes."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - left_free))


def attempt(store: Store, folder: Path, context_class: type[WorkerContext]) -> str:
    """Work on the oldest run as a worker does; what could not even be stored, or an empty text."""
    run = store.claim("here", os.getpid(), 60.0)
    assert run is not None
    context = context_class(store, run, folder, threading.Event())
    try:
        execute(
            context,
            lambda given: pipeline.run_quantization(RunConfig.from_values(run.config), given),
        )
    except UserError as error:
        return f"{error.code}: {error}"
    return ""


def outcome(store: Store, run_id: int) -> list[str]:
    return [digest(store.load_artifact(run_id, precision)) for precision in ("INT4", "INT2")]


def main(folder: Path, model: Path) -> dict[str, Any]:
    store = open_store(folder)
    config = tiny_config(model, "rotated_upq", measure__baselines=False)
    undisturbed = store.enqueue(config)
    attempt(store, folder, WorkerContext)
    wanted = outcome(store, undisturbed)
    found: dict[str, Any] = {}
    for number, stage in enumerate(STAGES):
        left_free = LEFT_FREE[number % len(LEFT_FREE)]
        run_id = store.enqueue(config)
        Filling.full_in, Filling.left_free = stage, left_free
        Filling.ballast = folder / "ballast"
        unstored = attempt(store, folder, Filling)
        stopped = store.run(run_id)
        said = unstored or f"{stopped.error_code}: {stopped.error_message}"
        reached = stage in stopped.stages
        kept = [row.precision for row in store.artifacts(run_id)]
        Filling.ballast.unlink(missing_ok=True)
        store.reconcile(lambda *_: False)
        if store.run(run_id).state != "done":
            store.resume(run_id)
            attempt(store, folder, WorkerContext)
        found[stage] = {
            "reached": reached,
            "said": said,
            "state": store.run(run_id).state,
            "same": outcome(store, run_id) == wanted,
            "kept": set(kept) <= {row.precision for row in store.artifacts(run_id)},
            "doctor": store.doctor(),
        }
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
