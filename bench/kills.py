"""kill -9 of the worker and of who keeps it, at random moments of every stage of a small run: what is left is the same.

The keeper is a process with the app's supervisor and without its page. It starts real workers; after its own death its
worker goes on alone, and the next keeper takes over. Runs that three crashes have failed are resumed as a person does.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench import tiny_model
from upq.config import QUANTIZED, RunConfig, preset, with_settings
from upq.jobs import Supervisor
from upq.store import Run, Store, open_store

SMALL: dict[str, Any] = {
    "threads": 1,
    "data.max_rows": 6,
    "data.held_out": 3,
    "data.answer_tokens": 8,
    "data.sequence_tokens": 160,
    "measure.answer_tokens": 8,
    **{f"{precision.key}.group_size": 32 for precision in QUANTIZED},
    **{f"{precision.key}.blockwise.tokens": 1200 for precision in QUANTIZED},
    **{f"{precision.key}.blockwise.epochs": 6 for precision in QUANTIZED},
    **{f"{precision.key}.blockwise.batch_tokens": 320 for precision in QUANTIZED},
    **{f"{precision.key}.distill.tokens": 6000 for precision in QUANTIZED},
    **{f"{precision.key}.distill.batch_tokens": 320 for precision in QUANTIZED},
    **{f"{precision.key}.distill.checkpoint_seconds": 0.1 for precision in QUANTIZED},
}
#: A run that does not come to its end by then is stuck. Seconds.
STUCK_S = 900.0
_LOOK_S = 0.01
_PROCESSES = multiprocessing.get_context("forkserver")


@dataclass
class Outcome:
    """What a run left: digests of its artifacts and its KL, by label."""

    tensors: dict[str, str]
    kl: dict[str, float]


@dataclass
class Committed:
    """What the database holds of a run at some moment."""

    artifacts: dict[str, int] = field(default_factory=dict)
    points: set[tuple[str, int]] = field(default_factory=set)
    lines: set[tuple[float, str]] = field(default_factory=set)

    @classmethod
    def of(cls, store: Store, run_id: int) -> Committed:
        """All that is committed now."""
        return cls(
            {row.precision: row.id for row in store.artifacts(run_id)},
            {(point["series"], point["step"]) for point in store.metrics(run_id)},
            set(store.log_lines(run_id, limit=100_000)),
        )

    def missing_in(self, later: Committed) -> int:
        """How much of it is not there any more."""
        artifacts = len(self.artifacts.items() - later.artifacts.items())
        return artifacts + len(self.points - later.points) + len(self.lines - later.lines)


def measure(folder: Path, kills: int, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each kill, and which promise was broken."""
    tiny_model.save(folder / "model")
    source = {"model.source": str(folder / "model"), **SMALL}
    config = with_settings(preset("smoke"), source)
    data = folder / "data with a space and ü"
    data.mkdir()
    store = open_store(data)
    _PROCESSES.set_forkserver_preload(["bench.kills"])
    with _Keeper(data) as keeper:
        undisturbed = store.enqueue(config)
        run = _ended(store, undisturbed)
        if run.state != "done":
            raise RuntimeError(f"the undisturbed run ended as {run.state}: {run.error_message}")
        wanted = _outcome(store, undisturbed)
        moments = _moments(run, kills, random.Random(seed))
        rows: list[dict[str, Any]] = []
        problems: list[str] = []
        while moments:
            now, moments = moments[: len(run.stages)], moments[len(run.stages) :]
            found, wrong = _disturbed(store, keeper, config, now, wanted)
            missed = now[len(found) :]  # the run had ended before they came
            moments = [replace(moment, after_s=moment.after_s / 2) for moment in missed] + moments
            rows += found
            problems += wrong
    store.close()
    return rows, problems


@dataclass(frozen=True)
class Moment:
    """When a kill happens, seconds behind the beginning of a stage, and whom it hits."""

    stage: str
    after_s: float
    victim: str


def _moments(run: Run, kills: int, chosen: random.Random) -> list[Moment]:
    """Kills in the order of the stages, again and again; half of them hit the worker, half the keeper."""
    victims = ["worker", "keeper"] * ((kills + 1) // 2)
    chosen.shuffle(victims)
    stages = list(run.stages)
    found = []
    for number in range(kills):
        stage = stages[number % len(stages)]
        after_s = chosen.uniform(0.0, run.stages[stage]["seconds"])
        found.append(Moment(stage, after_s, victims[number]))
    return found


def _disturbed(
    store: Store, keeper: _Keeper, config: RunConfig, moments: list[Moment], wanted: Outcome
) -> tuple[list[dict[str, Any]], list[str]]:
    """A run with these kills: a row for each, and what was wrong with it."""
    run_id = store.enqueue(config)
    rows, committed = [], []
    for moment in moments:
        _wait_for_stage(store, run_id, moment.stage)
        time.sleep(moment.after_s)
        before = Committed.of(store, run_id)
        run = store.run(run_id)
        if run.state in ("done", "failed"):
            break  # it ended meanwhile
        if moment.victim == "keeper":
            keeper.kill()
        elif run.pid:
            os.kill(run.pid, signal.SIGKILL)
        rows.append(
            {
                "run": run_id,
                "victim": moment.victim,
                "stage": run.stage or "start",
                "step": f"{run.stage_step}/{run.stage_total}",
            }
        )
        committed.append(before)
    run = _ended(store, run_id)
    problems = [f"doctor: {line}" for line in store.doctor()]
    if run.state != "done":
        return rows, [*problems, f"run {run_id} ended as {run.state}: {run.error_message}"]
    at_end, same = Committed.of(store, run_id), _outcome(store, run_id) == wanted
    for row, before in zip(rows, committed, strict=True):
        row |= {"lost": before.missing_in(at_end), "same bits": same, "attempts": run.attempt}
    if not same:
        problems.append(f"run {run_id} has other bits than the undisturbed one")
    if any(row["lost"] for row in rows):
        problems.append(f"run {run_id} lost what was committed")
    return rows, problems


def _outcome(store: Store, run_id: int) -> Outcome:
    tensors = {}
    for row in store.artifacts(run_id):
        state = hashlib.sha256()
        for name, tensor in sorted(store.load_artifact(run_id, row.precision).tensors.items()):
            state.update(name.encode())
            state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        tensors[row.precision] = state.hexdigest()
    return Outcome(tensors, {row["label"]: row["kl"] for row in store.measurements(run_id)})


def _wait_for_stage(store: Store, run_id: int, stage: str) -> None:
    """Wait until a run has entered a stage, or ended. A run that crashes have failed is resumed."""
    for run in _watched(store, run_id):
        if stage in run.stages or run.state == "done":
            return


def _ended(store: Store, run_id: int) -> Run:
    for run in _watched(store, run_id):
        if run.state in ("done", "failed", "cancelled"):
            return run
    raise AssertionError("a run is watched until it ends")


def _watched(store: Store, run_id: int) -> Iterator[Run]:
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        run = store.run(run_id)
        if run.error_code == "worker_crashed" and run.state == "failed":
            store.resume(run_id)
            continue
        yield run
        time.sleep(_LOOK_S)
    raise RuntimeError(f"run {run_id} is still {run.state} in {run.stage} after {STUCK_S:g} s")


class _Keeper:
    """A process with a supervisor, killed and started again; at the end it leaves in order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = self._start()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def kill(self) -> None:
        """Kill it and start the next one."""
        self._process.kill()
        self._process.join()
        self._process = self._start()

    def _start(self) -> Any:
        process = _PROCESSES.Process(target=keep, args=[self._folder])
        process.start()
        return process


def keep(folder: Path) -> None:
    """Supervise the workers of a data folder until SIGTERM."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    supervisor = Supervisor(open_store(folder), folder)
    supervisor.start()
    asked.wait()
    supervisor.stop()
