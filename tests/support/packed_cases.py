"""Runs with everything that a run can leave, to be packed, and what a store is asked when it refuses a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.store_cases import a_check, claimed
from upq import machine
from upq.artifact import Artifact
from upq.config import RunConfig
from upq.errors import UserError
from upq.store import Store
from upq.store.artifacts import PART_BYTES

VERDICT = {"instruction_id": "a", "strict": True, "loose": None, "reason": "because"}
#: As versions before kept it, and with how the answer ended.
OUTCOME = {"key": 1, "response": "Hello", "verdicts": [VERDICT]}
ENDED = {**OUTCOME, "ending": {"finish": "length", "tokens": 64, "repeats": True}}
#: A little more than one part.
LARGE = torch.arange(PART_BYTES // 4 + 100, dtype=torch.int32)


def an_artifact(precision: str, value: int, weight: torch.Tensor) -> Artifact:
    base = {"name": "tiny", "source": "bundled", "reference_note": "", "revision": None}
    manifest = {
        "format_version": 1,
        "bits_per_weight": 4.25,
        "config": {},
        "layers": {"a": {"bits": value}},
        "base_model": base,
    }
    tensors = {"shared": torch.arange(10), "w": weight + value, "empty": torch.empty(0, 4)}
    return Artifact(precision, manifest, tensors, {"config.json": b"{}", "sub/empty": b""})


def finished(store: Store, weight: torch.Tensor = LARGE[:50], checks: int = 1) -> int:
    """A done run with everything that a run can leave."""
    run_id = store.enqueue(RunConfig(), name="a name")
    lease = store.lease(claimed(store))
    lease.environment(machine.environment())
    lease.stage("int4", 5)
    lease.progress(1, 2.0, 3.0, "block 1", 4, None)
    lease.metrics([("jsd", step, 0.5 / step, 0.0) for step in range(1, 9)])
    lease.log([(1.0, "line one"), (2.0, "line two")])
    for value, precision in enumerate(("INT4", "INT2")):
        lease.save_artifact(an_artifact(precision, value, weight))
    lease.save_measurements([{"label": "INT4", "precision": "INT4", "kl": 0.1, "kl_low": 0.05}])
    lease.finish("done")
    for _ in range(checks):
        checked(store, run_id)
    return run_id


def checked(store: Store, run_id: int) -> int:
    check_id = store.enqueue_check(a_check(run_id))
    lease = store.lease(claimed(store))
    lease.save_check_result("INT4", 0, OUTCOME)
    lease.save_check_result("INT4", 1, ENDED)
    lease.finish("done")
    return check_id


def refused(store: Store, path: Path) -> UserError:
    """The error of unpacking, which leaves nothing behind."""
    runs, before = store.runs(), sorted(os.listdir(path.parent))
    with pytest.raises(UserError) as caught:
        store.unpack(path)
    assert "\n" not in caught.value.message
    assert store.runs() == runs
    assert store.doctor() == []
    assert sorted(os.listdir(path.parent)) == before
    return caught.value
