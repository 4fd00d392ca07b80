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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from kernels.packing import PackedWeight, pack, unpack
from kernels.transform import Transform
from upq.artifact import Artifact
from upq.artifact_vet import vetted_layers
from upq.assembly import build
from upq.config import RunConfig
from upq.jobs import open_store
from upq.model_files import resolve
from upq.models import LoadedModel, load
from upq.provenance import training_tokens
from upq.quantizers import Grid
from upq.sources import RESOURCES
from upq.store import Store
from upq.store_artifacts import Prepared, prepare
from upq.worker import give_way

FOLDER = RESOURCES / "demo"
#: What is not a tensor: the run, its curves and measurements, and each artifact's manifest and digests.
DESCRIPTION = "demo.json"
NAME = "shipped with the app"
#: The note that the models were added once; deleting their run does not bring them back.
NOTE = "shipped"
SIGNS = ("scale_in", "scale_out")

_logger = logging.getLogger(__name__)


class Mismatch(Exception):
    """The files do not fit the bundled model that is installed; the message says where."""


def differences(artifact: Artifact, loaded: LoadedModel) -> dict[str, numpy.ndarray]:
    """What `restored` needs beside the manifest. loaded: the model that the artifact was made of.

    codes are differences modulo 2**bits, packed as codes are; signs are bits, 1 for +1. Raises ValueError for a layer
    with zeros, a lattice, factors other than signs, or a Hadamard matrix that is not exact in binary.
    """
    packed = vetted_layers(artifact, loaded.model)
    layers = {name: one for name, one in packed.items() if one.bits < 8}
    untrained = build(artifact.precision, layers, loaded, _config(artifact.manifest)).tensors
    arrays = {
        name: tensor.numpy()
        for name, tensor in artifact.tensors.items()
        if not torch.equal(tensor, untrained[name])
    }
    for name, one in layers.items():
        _require_exact(name, one)
        codes = unpack(one.codes, one.bits) - _rounded(loaded, name, one)
        arrays[f"{name}.codes"] = pack(codes & (2**one.bits - 1), one.bits).numpy()
        arrays[f"{name}.scale"] = one.scale.numpy()
        for part, signs in (one.transform.tensors if one.transform else {}).items():
            arrays[f"{name}.{part}"] = numpy.packbits((signs > 0).numpy())
    return arrays


def restored(
    manifest: dict[str, Any], arrays: Mapping[str, numpy.ndarray], loaded: LoadedModel
) -> Artifact:
    """The artifact that `differences` took apart. loaded: the same model as there."""
    layers = {
        name: _layer(name, entry, arrays, loaded)
        for name, entry in manifest["layers"].items()
        if entry["bits"] < 8
    }
    trained = {
        name: torch.from_numpy(arrays[name])
        for name, _ in loaded.model.named_parameters()
        if name in arrays
    }
    artifact = build(manifest["precision"], layers, loaded, _config(manifest), trained)
    return replace(artifact, manifest=manifest)


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
    prepared = [_checked(precision, one, folder, loaded) for precision, one in artifacts.items()]
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
    command = [sys.executable, "-m", "upq.shipped", str(data_folder)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def main(data_folder: Path, folder: Path = FOLDER) -> None:
    """What the process does: whatever goes wrong is a line in the app's log, and the app is as without the files."""
    try:
        store = open_store(data_folder)
        add_to(store, folder)
        store.close()
    except Exception as error:
        _logger.warning("The models that ship with the app were not added: %s", error)


def origin(run: Mapping[str, Any]) -> str:
    """Where the shipped models come from, as a line of the run's log."""
    found = [one["machine"] for one in run["environments"]]
    machines = {one["gpu"] or f"{one['cores']} cores of {one['processor']}" for one in found}
    tokens = sum(training_tokens(run["metrics"]).values())
    kl = {row["label"]: row["kl"] for row in run["measurements"]}
    return (
        f"{NAME.capitalize()}: preset {run['preset']}, trained in {run['worked_s'] / 60:.0f} minutes on"
        f" {' and '.join(sorted(machines))} with {tokens:,} tokens; KL to FP16 {kl['INT4']:.3f} (INT4) and"
        f" {kl['INT2']:.3f} (INT2). Every tensor has the digest that it had there."
    )


def _checked(precision: str, one: dict[str, Any], folder: Path, loaded: LoadedModel) -> Prepared:
    if one["manifest"]["base_model"]["files"] != loaded.info.files:
        raise Mismatch(
            f"{precision} was made of another {loaded.info.name} than the one that is installed"
        )
    with numpy.load(folder / f"{precision}.npz", allow_pickle=False) as arrays:
        prepared = prepare(restored(one["manifest"], arrays, loaded))
    found, expected = digests(prepared), one["digests"]
    wrong = sorted(
        name for name in found.keys() | expected if found.get(name) != expected.get(name)
    )
    if wrong:
        raise Mismatch(f"{len(wrong)} tensors of {precision} differ, first {wrong[0]}")
    return prepared


def _config(manifest: dict[str, Any]) -> RunConfig:
    return RunConfig.from_values(manifest["config"])


def _rounded(loaded: LoadedModel, name: str, packed: PackedWeight) -> torch.Tensor:
    """Codes (out, in) uint8 of the FP16 weight, rotated, at the scales of `packed`."""
    weight = loaded.model.get_parameter(f"{name}.weight").detach().double()
    rotated = packed.transform.rotate(weight) if packed.transform else weight
    return Grid(packed.bits).encode(rotated, packed.scale)


def _layer(
    name: str, entry: dict[str, Any], arrays: Mapping[str, numpy.ndarray], loaded: LoadedModel
) -> PackedWeight:
    bits, (rows, columns) = entry["bits"], entry["shape"]
    signs = {
        part: _signs(arrays[f"{name}.{part}"], columns if part == "scale_in" else rows)
        for part in entry.get("parts", ())
    }
    blocks = entry.get("hadamard_in", 1), entry.get("hadamard_out", 1)
    around = Transform(*blocks, **signs) if signs or blocks != (1, 1) else None
    scale = torch.from_numpy(arrays[f"{name}.scale"])
    difference = torch.from_numpy(arrays[f"{name}.codes"])
    packed = PackedWeight(difference, scale, bits, Grid(bits).zero, None, around)
    codes = unpack(difference, bits) + _rounded(loaded, name, packed)
    return replace(packed, codes=pack(codes & (2**bits - 1), bits))


def _signs(packed: numpy.ndarray, count: int) -> torch.Tensor:
    return torch.from_numpy(numpy.unpackbits(packed, count=count)).half() * 2 - 1


def _require_exact(name: str, packed: PackedWeight) -> None:
    """Raise ValueError unless every machine computes the same codes for this layer."""
    around = packed.transform or Transform()
    blocks = {around.block_in, around.block_out}
    signs = all(bool((one.abs() == 1).all()) for one in around.tensors.values())
    if packed.zeros is not None or around.tensors.keys() - set(SIGNS) or not signs:
        raise ValueError(f"{name} has zeros, a lattice or tuned factors, which are not kept here")
    if any(block.bit_length() % 2 == 0 for block in blocks):
        raise ValueError(f"{name} has Hadamard blocks of {blocks}; expected 1, 4, 16, 64, ...")


if __name__ == "__main__":
    give_way()
    main(Path(sys.argv[1]))
