"""Shipped models come back bit for bit, once, and only to the model that they were made of."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts import ship_demo
from tests.support.helpers import tiny_config
from upq.artifact.delta import differences
from upq.jobs import shipped
from upq.jobs.shipped import DESCRIPTION, NOTE, Mismatch, add_to
from upq.jobs.worker_context import WorkerContext, execute
from upq.models import LoadedModel, load
from upq.quantize.pipeline import run_quantization
from upq.store import Store, open_store


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights of 16 bits, as a GGUF file gives them."""
    folder = tmp_path_factory.mktemp("shipped") / "tiny"
    shutil.copytree(tiny_model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    halves = {name: one.half().float() for name, one in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def made(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, int, Path]]:
    """A store with a finished run, its id, and the folder of the files that were made of it."""
    folder = tmp_path_factory.mktemp("made")
    store = open_store(folder)
    config = tiny_config(model, "rotated_upq", embedding_bits=8)
    run_id = store.enqueue(config)
    run = store.claim("cpu@here:1", 1, 30.0)
    assert run is not None
    context = WorkerContext(store, run, folder, threading.Event())
    execute(context, lambda one: run_quantization(config, one))
    ship_demo.ship(store, run_id, load(str(model)), folder / "demo")
    yield store, run_id, folder / "demo"
    store.close()


@pytest.fixture
def files(made: tuple[Store, int, Path], tmp_path: Path) -> Path:
    """A copy of the files, to be damaged."""
    return Path(shutil.copytree(made[2], tmp_path / "demo"))


def test_a_shipped_run_comes_back_with_every_bit_and_number(
    made: tuple[Store, int, Path], store: Store
) -> None:
    origin, run_id, folder = made
    added = add_to(store, folder)
    assert added is not None
    for precision in ("INT4", "INT2"):
        before = origin.load_artifact(run_id, precision)
        after = store.load_artifact(added, precision)
        assert after.tensors.keys() == before.tensors.keys()
        assert all(torch.equal(after.tensors[name], one) for name, one in before.tensors.items())
        assert (after.manifest, after.files) == (before.manifest, before.files)
    assert store.metrics(added) == origin.metrics(run_id)
    rows = [one.measurements(number) for one, number in ((store, added), (origin, run_id))]
    assert [{**row, "run_id": 0} for row in rows[0]] == [{**row, "run_id": 0} for row in rows[1]]
    kept, given = store.run(added), origin.run(run_id)
    same = ("config", "stages", "environments", "worked_s", "started_at", "ended_at", "preset")
    assert [getattr(kept, name) for name in same] == [getattr(given, name) for name in same]
    assert (kept.state, kept.attempt, kept.name) == ("done", 0, shipped.NAME)
    ((_, line),) = store.log_lines(added)
    assert line.startswith("Shipped with the app: preset smoke, trained in 0 minutes on")


def test_the_files_hold_nothing_that_the_model_says_already(
    made: tuple[Store, int, Path], model: Path
) -> None:
    folder = made[2]
    weights = load_file(model / "model.safetensors")
    linears = {name.removesuffix(".weight") for name in weights if "proj" in name}
    for precision in ("INT4", "INT2"):
        with numpy.load(folder / f"{precision}.npz") as arrays:
            trained = {name for name in arrays.files if "norm" in name}
            own = ("minimum", "steps") if precision == "INT2" else ()
            parts = ("codes", "scale", "scale_in", *own)
            expected = {f"{name}.{part}" for name in linears for part in parts}
            assert set(arrays.files) - trained == expected
            assert trained == {name for name in weights if "layernorm" in name}


def test_no_files_and_no_room_mean_no_shipped_run(
    made: tuple[Store, int, Path], store: Store, tmp_path: Path
) -> None:
    assert add_to(store, tmp_path / "nothing") is None
    assert add_to(made[0], made[2]) is None, "it has a finished run"
    assert store.note(NOTE) is None


def test_a_deleted_shipped_run_does_not_come_back(
    made: tuple[Store, int, Path], store: Store
) -> None:
    added = add_to(store, made[2])
    assert added is not None
    assert add_to(store, made[2]) is None
    store.delete(added)
    assert add_to(store, made[2]) is None
    assert store.runs() == []


def test_a_changed_code_is_found_by_its_digest(files: Path, store: Store) -> None:
    with numpy.load(files / "INT2.npz") as arrays:
        changed = dict(arrays)
    changed["model.layers.0.mlp.up_proj.codes"][0, 0] ^= 1
    numpy.savez_compressed(files / "INT2.npz", **changed)
    with pytest.raises(
        Mismatch, match=r"1 tensors of INT2 differ, first model\.layers\.0\.mlp\.up"
    ):
        add_to(store, files)
    assert store.runs() == []


def test_another_model_than_the_one_that_was_quantized_is_noticed(
    files: Path, store: Store, model: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    described = json.loads((files / DESCRIPTION).read_text())
    described["run"]["model"] = str(other)
    (files / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(Mismatch, match="made of another other"):
        add_to(store, files)
    assert store.runs() == []


@pytest.mark.parametrize("name", [DESCRIPTION, "INT4.npz"])
def test_a_file_that_cannot_be_read_is_a_line_in_the_log(
    files: Path, store: Store, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (files / name).write_bytes(b"PK damaged")
    assert shipped.main(tmp_path, files) == 1
    assert "The models that ship with the app were not added" in caplog.text
    assert store.runs() == []


def test_half_an_adopted_run_is_not_stored(store: Store, files: Path) -> None:
    run = json.loads((files / DESCRIPTION).read_text())["run"]

    def broken() -> Iterator[Any]:
        raise OSError("cannot be read")
        yield

    with pytest.raises(OSError, match="cannot be read"):
        store.adopt({**run, "name": "x"}, broken(), "line", NOTE)
    assert store.runs() == []
    assert store.note(NOTE) is None


def test_a_rotation_that_is_not_exact_in_binary_is_refused(
    made: tuple[Store, int, Path], model: Path
) -> None:
    loaded: LoadedModel = load(str(model))
    artifact = made[0].load_artifact(made[1], "INT4")
    name = "model.layers.0.mlp.up_proj"
    for change, message in (({"hadamard_in": 32}, "expected 1, 4, 16"), ({}, "tuned factors")):
        layers = artifact.manifest["layers"]
        layers = {**layers, name: {**layers[name], **change}}
        tensors = dict(artifact.tensors)
        if not change:
            tensors[f"{name}.scale_in"] = tensors[f"{name}.scale_in"] * 2
        inexact = replace(
            artifact, manifest={**artifact.manifest, "layers": layers}, tensors=tensors
        )
        with pytest.raises(ValueError, match=message):
            differences(inexact, loaded)


def test_a_run_that_is_not_done_or_too_large_is_not_shipped(
    made: tuple[Store, int, Path],
    store: Store,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = store.enqueue(tiny_config(model))
    with pytest.raises(ValueError, match="is queued"):
        ship_demo.ship(store, waiting, load(str(model)), tmp_path / "out")
    monkeypatch.setattr(ship_demo, "LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1,000"):
        ship_demo.ship(made[0], made[1], load(str(model)), tmp_path / "out")
