"""The wall clock is set while a run is at work: leases, which are times of day, say nothing until they are renewed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from upq.config import RunConfig
from upq.jobs import Supervisor
from upq.jobs.worker import worker_name
from upq.store import Store

HOUR_S = 3600.0
LEASE_S = 30.0


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_a_jump_of_the_clock_takes_no_run_from_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real, offset, waited = time.time, [0.0], [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    store = Store(tmp_path / "upq.db", clock=lambda: time.time() + waited[0])
    run_id = store.enqueue(RunConfig())
    run = store.claim(worker_name("cpu", os.getpid()), os.getpid(), LEASE_S)
    assert run is not None
    supervisor = Supervisor(store, tmp_path, command=["true"])
    offset[0] = jump_s
    supervisor._recover()
    assert store.run(run_id).state == "running", "its lease only looks as if it were over"
    store.lease(run).renew(LEASE_S)
    supervisor._trust_leases_from = 0.0  # a lease later
    supervisor._recover()
    assert store.run(run_id).state == "running", "its worker has renewed it"
    waited[0] = LEASE_S + 1.0
    supervisor._recover()
    assert store.run(run_id).state == "queued", "a worker that is silent is still noticed"
    assert store.run(run_id).crashes == 1
    assert store.doctor() == []
    store.close()
