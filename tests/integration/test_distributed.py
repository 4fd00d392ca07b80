"""Two processes distill together over gloo and come to what one comes to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.distill_process import train
from tests.support.helpers import TINY_SETTINGS
from upq.jobs.distributed import command
from upq.quantize import checkpoint
from upq.store import open_store

#: What the order of float32 sums may change over the few steps of these tests.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 1e-3


def result(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    found = checkpoint.load(folder / "result")
    assert found is not None
    return found


def test_two_processes_distill_like_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        train(str(tiny_model_dir), tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    launch = command(tmp_path, 2)
    launch = [*launch[: launch.index("-m", 2)], "-m", "tests.integration.distill_process"]
    subprocess.run(
        [*launch, str(tiny_model_dir), str(tmp_path / "two")],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    (alone, one), (shared, two) = result(tmp_path / "one"), result(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) >= 3
    assert two["losses"] == pytest.approx(one["losses"], rel=LOSS_TOLERANCE)
    assert alone.keys() == shared.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(
            shared[name], tensor, rtol=WEIGHT_TOLERANCE, atol=WEIGHT_TOLERANCE
        )


@pytest.mark.slow
def test_a_whole_run_of_two_processes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The command line with --processes 2: the queue, the data and the block-wise stages stay with one of them."""
    data = tmp_path / "data"
    settings = [f"--set={name}={value}" for name, value in TINY_SETTINGS.items()]
    base = [sys.executable, "-m", "upq", "--data-dir", str(data), "run", "--method", "upq"]
    chosen = ["--preset", "smoke", "--model", str(tiny_model_dir), "--processes", "2"]
    done = subprocess.run(
        [*base, *chosen, *settings], check=False, capture_output=True, text=True, timeout=900
    )
    log = (data / "logs" / "worker.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log
    store = open_store(data)
    (run,) = store.runs()
    assert run.state == "done"
    assert [artifact.precision for artifact in store.artifacts(run.id)] == ["INT4", "INT2"]
    steps = [point["step"] for point in store.metrics(run.id) if point["series"] == "jsd"]
    assert steps == sorted(set(steps))
    assert len(steps) >= 3
