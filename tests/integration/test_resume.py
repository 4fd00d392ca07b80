"""A worker is killed in a stage of a real run, or steps aside for a check; the next one makes the same bits."""

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import digest, tiny_config
from tests.support.job_cases import processes, wait_for
from upq.config import CheckConfig, RunConfig
from upq.context import STAGES
from upq.jobs import worker_main
from upq.store import Store, checkpoint_dir, open_store

#: Enough work that a stage goes on for a while behind the checkpoint at which it is killed.
LONGER: dict[str, Any] = {
    "int4__blockwise__tokens": 1200,
    "int4__blockwise__epochs": 6,
    "int2__blockwise__tokens": 1200,
    "int2__blockwise__epochs": 6,
    "int2__distill__tokens": 9_000,
    "int2__distill__checkpoint_seconds": 0.1,
    "measure__baselines": False,
}


@pytest.fixture
def work() -> Iterator[Callable[[Path], BaseProcess]]:
    """Starts a worker that executes one run; what is still alive at the end of the test is killed."""
    with processes() as start:
        yield lambda folder: start(worker_main, folder, once=True, heartbeat_s=0.2)


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> RunConfig:
    return tiny_config(tiny_model_dir, "rotated_upq", **LONGER)


@pytest.fixture
def begun(
    store: Store, tmp_path: Path, config: RunConfig, work: Callable[[Path], BaseProcess]
) -> Callable[[str], tuple[int, BaseProcess]]:
    """Starts the run and waits until its checkpoint has files like a pattern; the run's number and its worker."""

    def begin(kept: str) -> tuple[int, BaseProcess]:
        run_id = store.enqueue(config)
        worker = work(tmp_path)
        wait_for(lambda: any(checkpoint_dir(tmp_path, run_id).glob(kept)), 240)
        return run_id, worker

    return begin


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Digests and curves of the same run when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = open_store(folder)
    run_id = store.enqueue(config)
    with processes() as start:
        start(worker_main, folder, once=True).join(240)
    assert store.run(run_id).state == "done", store.log_lines(run_id)
    found = outcome(store, run_id)
    store.close()
    return found


def outcome(store: Store, run_id: int) -> dict[str, Any]:
    artifacts = [store.load_artifact(run_id, precision) for precision in ("INT4", "INT2")]
    rows = store.measurements(run_id)
    points = {(point["series"], point["step"]): point["value"] for point in store.metrics(run_id)}
    return {
        "tensors": [digest(artifact) for artifact in artifacts],
        "points": set(points),
        "values": {at: value for at, value in points.items() if at[0] != "tokens_per_s"},
        "kl": {row["label"]: row["kl"] for row in rows},
    }


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        pytest.param("int4", "int4/block-0000", marks=pytest.mark.slow),
        pytest.param("int2", "int2/block-0000", marks=pytest.mark.slow),
        ("int2_distill", "int2-distill/step-*"),
    ],
)
@pytest.mark.chaos
def test_a_run_killed_in_a_stage_goes_on_to_the_bits_of_one_that_was_not(
    stage: str,
    kept: str,
    store: Store,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    work: Callable[[Path], BaseProcess],
    begun: Callable[[str], tuple[int, BaseProcess]],
) -> None:
    run_id, first = begun(kept)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join(20)
    run = store.run(run_id)
    assert (run.state, run.stage) == ("running", stage), "killed where it should be"
    finished = [artifact.precision for artifact in store.artifacts(run_id)]
    assert finished == ([] if stage == "int4" else ["INT4"])
    curve = [point["step"] for point in store.metrics(run_id) if point["series"] == "jsd"]

    second = work(tmp_path)
    second.join(240)
    run = store.run(run_id)
    assert (run.state, run.attempt, run.crashes) == ("done", 2, 1), store.log_lines(run_id)
    found = outcome(store, run_id)
    assert found["tensors"] == undisturbed["tensors"]
    assert found["points"] == undisturbed["points"], "no point is missing"
    assert found["values"] == undisturbed["values"], "none differs, speed apart"
    assert found["kl"] == undisturbed["kl"]
    assert not checkpoint_dir(tmp_path, run_id).exists(), "a finished run leaves no checkpoint"
    steps = sum(series == "jsd" for series, _ in found["points"])
    assert len(curve) < steps, "the killed worker had not finished the stage"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        ("int4", "int4/block-0000"),
        ("int2_distill", "int2-distill/step-*"),
    ],
)
def test_a_run_that_steps_aside_for_a_check_has_the_bits_of_one_that_did_not(
    stage: str,
    kept: str,
    store: Store,
    tmp_path: Path,
    tiny_model_dir: Path,
    undisturbed: dict[str, Any],
    work: Callable[[Path], BaseProcess],
    begun: Callable[[str], tuple[int, BaseProcess]],
) -> None:
    run_id, first = begun(kept)
    check = CheckConfig(
        suite="builtin",
        precisions=("FP16",),
        run_id=None,
        model=str(tiny_model_dir),
        limit=1,
        max_tokens=4,
    )
    check_id = store.enqueue_check(check)
    first.join(240)
    run = store.run(run_id)
    assert (run.state, run.aside_for) == ("interrupted", check_id)
    assert STAGES.index(run.stage) >= STAGES.index(stage), "a short stage may have ended meanwhile"
    assert run.has_checkpoint
    work(tmp_path).join(240)
    assert store.run(check_id).state == "done", store.log_lines(check_id)
    assert len(store.check_results(check_id)) == 1
    work(tmp_path).join(240)
    run = store.run(run_id)
    assert (run.state, run.attempt, run.crashes) == ("done", 2, 0), store.log_lines(run_id)
    assert outcome(store, run_id) == undisturbed
