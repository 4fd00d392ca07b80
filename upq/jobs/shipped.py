"""INT4 and INT2 of the bundled model that ship with the app, kept as what the bundled model does not say already.

A file holds the scales, the signs of the rotation, the norms that were trained, and for each weight the difference of
its code to the one that plain rounding of the rotated FP16 weight gives at these scales. All else is made of the
bundled model again: 8-bit embedding and head, other norms, config, tokenizer. The rotation is computed in float64,
where signs and Hadamard blocks of 4, 16, 64, ... are exact for 16-bit weights, so all machines find the same codes;
the digest of every tensor is compared before anything is stored.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

from upq.artifact.delta import restored
from upq.context import training_tokens
from upq.files import RESOURCES
from upq.jobs.worker import give_way
from upq.models import LoadedModel, load, resolve
from upq.store import Prepared, Store, open_store, prepare

FOLDER = RESOURCES / "demo"
#: What is not a tensor: the run, its curves and measurements, and each artifact's manifest and digests.
DESCRIPTION = "demo.json"
NAME = "shipped with the app"
#: The note that the models were added once; deleting their run does not bring them back.
NOTE = "shipped"

_logger = logging.getLogger(__name__)


class Mismatch(Exception):
    """The files do not fit the bundled model that is installed; the message says where."""


def digests(prepared: Prepared) -> dict[str, str]:
    """The digest of each tensor by its name."""
    return {name: blob.digest for name, blob in prepared.tensors.items()}


def add_to(store: Store, folder: Path = FOLDER) -> int | None:
    """Add the shipped run to a store without a finished quantization and return its id; None if there is nothing to do.

    Nothing is downloaded. Takes some ten seconds, and memory for the float32 model meanwhile. Raises Mismatch, and
    UserError as models.load does.
    """
    if not is_wanted(store, folder):
        return None
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    run, artifacts = described["run"], described["artifacts"]
    if resolve(run["model"]).kind == "hub":
        return None
    loaded = load(run["model"])
    prepared = [_checked(precision, kept, folder, loaded) for precision, kept in artifacts.items()]
    return store.adopt({**run, "name": NAME}, prepared, origin(run), NOTE)


def is_wanted(store: Store, folder: Path = FOLDER) -> bool:
    """Whether there are shipped models, and a store that has neither had them nor a finished quantization."""
    return (folder / DESCRIPTION).is_file() and store.may_adopt(NOTE)


def start(store: Store, data_folder: Path) -> subprocess.Popen[bytes] | None:
    """`add_to` in a process of its own, which gives its memory back; None if there is nothing to do.

    It may be killed at any time: the run is added whole or not at all.
    """
    if not is_wanted(store):
        return None
    command = [sys.executable, "-m", "upq.jobs.shipped", str(data_folder)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def main(data_folder: Path, folder: Path = FOLDER) -> int:
    """What the process does, and its exit code: whatever goes wrong is a line in the app's log and a 1, and the app is
    as without the files.
    """
    try:
        store = open_store(data_folder)
        add_to(store, folder)
        store.close()
    except Exception as error:
        _logger.warning("The models that ship with the app were not added: %s", error)
        return 1
    return 0


def origin(run: Mapping[str, Any]) -> str:
    """Where the shipped models come from, as a line of the run's log."""
    found = [place["machine"] for place in run["environments"]]
    machines = {
        machine["gpu"] or f"{machine['cores']} cores of {machine['processor']}" for machine in found
    }
    tokens = sum(training_tokens(run["metrics"]).values())
    kl = {row["label"]: row["kl"] for row in run["measurements"]}
    return (
        f"{NAME.capitalize()}: preset {run['preset']}, trained in {run['worked_s'] / 60:.0f} minutes on"
        f" {' and '.join(sorted(machines))} with {tokens:,} tokens; KL to FP16 {kl['INT4']:.3f} (INT4) and"
        f" {kl['INT2']:.3f} (INT2). Every tensor has the digest that it had there."
    )


def _checked(precision: str, kept: dict[str, Any], folder: Path, loaded: LoadedModel) -> Prepared:
    if kept["manifest"]["base_model"]["files"] != loaded.info.files:
        raise Mismatch(
            f"{precision} was made of another {loaded.info.name} than the one that is installed"
        )
    with numpy.load(folder / f"{precision}.npz", allow_pickle=False) as arrays:
        prepared = prepare(restored(kept["manifest"], arrays, loaded))
    found, expected = digests(prepared), kept["digests"]
    wrong = sorted(
        name for name in found.keys() | expected if found.get(name) != expected.get(name)
    )
    if wrong:
        raise Mismatch(f"{len(wrong)} tensors of {precision} differ, first {wrong[0]}")
    return prepared


if __name__ == "__main__":
    give_way()
    sys.exit(main(Path(sys.argv[1])))
