"""What the tests of the store share: a clock moved by hand, a claimed run, every write of a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upq.artifact import Artifact
from upq.config import CheckConfig
from upq.store import Run, Store
from upq.store.lease import Lease


class Clock:
    """A wall clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def claimed(store: Store, worker: str = "w1", lease_s: float = 30.0) -> Run:
    run = store.claim(worker, 4711, lease_s)
    assert run is not None
    return run


def small_artifact() -> Artifact:
    return Artifact("INT4", {"bits_per_weight": 4.25}, {"w": torch.arange(6)}, {"a.json": b"{}"})


def a_check(run_id: int | None, **changes: Any) -> CheckConfig:
    return CheckConfig(
        suite="builtin", precisions=("FP16",), run_id=run_id, model="bundled", **changes
    )


WRITES: dict[str, Callable[[Lease], Any]] = {
    "renew": lambda lease: lease.renew(30.0),
    "stage": lambda lease: lease.stage("int4", 5),
    "progress": lambda lease: lease.progress(1, 2.0, 3.0, "block 1", 4, None),
    "metrics": lambda lease: lease.metrics([("jsd", 1, 0.5, 0.0)]),
    "environment": lambda lease: lease.environment({"commit": "abc"}),
    "log": lambda lease: lease.log([(1.0, "line")]),
    "save_artifact": lambda lease: lease.save_artifact(small_artifact()),
    "save_measurements": lambda lease: lease.save_measurements(
        [{"label": "a", "precision": "INT4"}]
    ),
    "save_check_result": lambda lease: lease.save_check_result("INT4", 0, {"key": "1"}),
    "finish": lambda lease: lease.finish("done"),
}


def contents(store: Store, run_id: int) -> tuple[Any, ...]:
    return (
        store.run(run_id),
        store.metrics(run_id),
        store.log_lines(run_id),
        store.artifacts(run_id),
        store.measurements(run_id),
        store.check_results(run_id),
    )
