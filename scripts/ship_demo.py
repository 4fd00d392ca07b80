"""Make the models that ship with the app of a finished run of the bundled model.

python -m scripts.ship_demo --data-dir FOLDER RUN
python -m scripts.ship_demo --data-dir FOLDER --checks RUN    # its checks alone
python -m scripts.ship_demo --carried FOLDER      # of a run that was made on another machine

Writes demo.json, INT4.npz and INT2.npz into upq/resources/demo, unpacks them again and compares every bit with the run;
and checks.json.gz with the newest finished check of each suite.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy

from scripts.measure_carried import measured
from upq.artifact import Artifact
from upq.artifact.delta import differences, restored
from upq.config import CheckConfig, RunConfig
from upq.evaluation import ifeval_suite, local_copy, mmlu, scores
from upq.jobs import shipped_checks
from upq.jobs.shipped import DESCRIPTION, FOLDER, digests, origin
from upq.models import LoadedModel, load
from upq.store import Store, data_dir, open_store, prepare
from upq.store.adopt import CHECK_FACTS, CHECK_VALUES

LARGEST_BYTES, LARGEST_CHECKS_BYTES = 30_000_000, 600_000
#: The suite whose check the app opens with: its own prompts, the only ones that visitors may put themselves.
OPENED = "builtin"
RUN_FACTS = (
    "model",
    "method",
    "preset",
    "config",
    "stages",
    "environments",
    "created_at",
    "started_at",
    "ended_at",
    "worked_s",
    "peak_bytes",
    "gpu_peak_bytes",
)


def ship(store: Store, run_id: int, loaded: LoadedModel, folder: Path) -> None:
    """Write the files of a run into `folder`, which is created. loaded: the model that the run quantized.

    Raises ValueError if the run is not done, a file is too large or a tensor does not come back bit for bit.
    """
    run = facts(store, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {}
    for row in store.artifacts(run_id):
        artifact = store.load_artifact(run_id, row.precision)
        write(artifact, loaded, folder / f"{row.precision}.npz")
        artifacts[row.precision] = description(artifact)
    _describe(run, artifacts, folder)
    ship_checks(store, run_id, folder)


def ship_checks(store: Store, run_id: int, folder: Path) -> None:
    """Write the newest finished check of each suite of a run, and what was asked in it, into `folder`.

    Raises ValueError if that takes too much room.
    """
    newest: dict[str, dict[str, Any]] = {}
    asked: dict[str, list[dict[str, Any]]] = {}
    for run in store.runs(limit=sys.maxsize, kind="check"):
        suite = run.config["suite"]
        if run.parent_id != run_id or run.state != "done" or suite in newest:
            continue
        config = CheckConfig.from_values(run.config)
        results = store.check_results(run.id)
        newest[suite] = {name: getattr(run, name) for name in (*CHECK_FACTS, *CHECK_VALUES)}
        # Its path is one of this machine, and its number one of this database.
        newest[suite]["config"] = run.config | {"path": None, "run_id": None}
        newest[suite]["results"] = results
        asked[suite] = asked_in(config, results)
    # The app opens with the last one.
    order = sorted(newest, key=lambda suite: (suite == OPENED, suite))
    checks = [newest[suite] for suite in order]
    content = shipped_checks.written(checks, {k: v for k, v in asked.items() if v})
    print(f"{shipped_checks.FILE}: {len(content):,} bytes, {', '.join(order) or 'no checks'}")
    if len(content) > LARGEST_CHECKS_BYTES:
        raise ValueError(f"the checks have {len(content):,} bytes, of {LARGEST_CHECKS_BYTES:,}")
    (folder / shipped_checks.FILE).write_bytes(content)


def asked_in(config: CheckConfig, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a published suite asked in these results; of our own prompts, which are here anyway, nothing.

    A check that has been shipped before has no path any more: UPQ_DATA names the folder of its suite, else it is the
    hub.
    """
    local = config.path or local_copy(config.suite)
    path = Path(local) if local else None
    found = scores.outcomes(config.suite, results).get(config.precisions[0], [])
    if config.suite == "ifeval":
        keys = {result.key for result in found}
        rows = [prompt for prompt in ifeval_suite(path) if prompt.key in keys]
        return [{"key": prompt.key, "prompt": prompt.prompt} for prompt in rows]
    if config.suite == "mmlu":
        items = {(result.subject, result.key) for result in found}
        rows = [one for one in mmlu.exam(path).questions if (one.subject, one.key) in items]
        return [dataclasses.asdict(question) for question in rows]
    return []


def ship_carried(source: Path, loaded: LoadedModel, folder: Path) -> None:
    """Write into `folder` what bench.gpu_training carried away into `source`; every tensor is compared again, and the
    artifacts are measured again on this machine.

    Raises ValueError if a tensor does not come back bit for bit.
    """
    run = json.loads((source / "run.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    artifacts, made = {}, {}
    for path in sorted(source.glob("INT?.json"), reverse=True):
        artifacts[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        parts = sorted(source.glob(f"{path.stem}.npz*"))
        content = b"".join(part.read_bytes() for part in parts)
        (folder / f"{path.stem}.npz").write_bytes(content)
        with numpy.load(folder / f"{path.stem}.npz", allow_pickle=False) as arrays:
            made[path.stem] = restored(artifacts[path.stem]["manifest"], arrays, loaded)
        if digests(prepare(made[path.stem])) != artifacts[path.stem]["digests"]:
            raise ValueError(f"{path.stem} does not give the tensors of the run again")
    run["measurements"] = measured(RunConfig.from_values(run["config"]), made, loaded)
    _describe(run, artifacts, folder)
    (folder / shipped_checks.FILE).unlink(missing_ok=True)  # they were put to another run's models


def facts(store: Store, run_id: int) -> dict[str, Any]:
    """What is kept of a run beside its artifacts. Raises ValueError if it is not done."""
    run = store.run(run_id)
    if run.state != "done" or run.kind != "quantize":
        raise ValueError(f"run {run_id} is a {run.kind} run that is {run.state}")
    found = {name: getattr(run, name) for name in RUN_FACTS}
    found["measurements"] = [
        {
            name: value
            for name, value in (row | row["extra"]).items()
            if name not in ("run_id", "extra")
        }
        for row in store.measurements(run_id)
    ]
    found["metrics"] = store.metrics(run_id)
    return found


def description(artifact: Artifact) -> dict[str, Any]:
    """What is kept of an artifact beside its arrays."""
    return {"manifest": artifact.manifest, "digests": digests(prepare(artifact))}


def _describe(run: dict[str, Any], artifacts: dict[str, Any], folder: Path) -> None:
    text = json.dumps({"run": run, "artifacts": artifacts}, sort_keys=True)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    print(origin(run))


def write(artifact: Artifact, loaded: LoadedModel, path: Path) -> None:
    """Write what is kept of an artifact's tensors and read it back. Raises ValueError if that is not the same."""
    arrays: dict[str, Any] = dict(differences(artifact, loaded))
    numpy.savez_compressed(path, **arrays)
    size = path.stat().st_size
    print(f"{path.name}: {size:,} bytes, of {artifact.size_bytes:,}")
    if size > LARGEST_BYTES:
        raise ValueError(f"{path.name} has {size:,} bytes; expected at most {LARGEST_BYTES:,}")
    with numpy.load(path, allow_pickle=False) as arrays:
        found = digests(prepare(restored(artifact.manifest, arrays, loaded)))
    if found != digests(prepare(artifact)):
        raise ValueError(f"{path.name} does not give the tensors of the run again")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=int, nargs="?", help="a finished run of the bundled model")
    parser.add_argument("--data-dir", help="folder of its database; else UPQ_HOME")
    parser.add_argument("--checks", action="store_true", help="write the checks of the run alone")
    parser.add_argument("--carried", type=Path, help="what bench.gpu_training wrote, instead")
    options = parser.parse_args()
    if options.carried:
        ship_carried(options.carried, load("bundled"), FOLDER)
        return
    store = open_store(data_dir(options.data_dir))
    try:
        if options.checks:
            ship_checks(store, options.run, FOLDER)
        else:
            ship(store, options.run, load(store.run(options.run).model), FOLDER)
    except ValueError as error:
        sys.exit(f"Not shipped: {error}.")
    finally:
        store.close()


if __name__ == "__main__":
    main()
