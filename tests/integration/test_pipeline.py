"""Whole runs on the tiny model, and one on the real one: config in, artifacts and measurements out."""

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.helpers import (
    RecordingContext,
    Stop,
    digests,
    quantized,
    stop_after,
    tiny_config,
)
from upq.config import preset
from upq.context import STAGES
from upq.errors import UserError
from upq.models import LoadedModel, compute_dtype, placed_copy
from upq.models.source import WEIGHTS


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordingContext:
    """One uninterrupted run of the smoke preset; leave it as it is."""
    return quantized(tiny_config(tiny_model_dir), tmp_path_factory.mktemp("finished"))


def test_a_run_passes_through_its_stages_in_order(finished: RecordingContext) -> None:
    assert [name for name, _ in finished.stages] == [
        name for name in STAGES if name != "int4_distill"
    ]
    totals = dict(finished.stages)
    assert (totals["data"], totals["int4"], totals["int2"], totals["measure"]) == (9, 2, 2, 5)
    assert totals["int2_distill"] >= 4
    for name, total in totals.items():
        done = [step for stage, step in finished.steps if stage == name]
        assert done == sorted(done)
        assert not total or done[-1] == total, name


def test_a_run_leaves_two_artifacts_and_five_rows(finished: RecordingContext) -> None:
    assert list(finished.artifacts) == ["INT4", "INT2"]
    rows = {row["label"]: row for row in finished.rows}
    assert list(rows) == ["FP16", "INT4", "INT2", "RTN INT4", "RTN INT2"]
    assert rows["FP16"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows["FP16"]["top1"] == 1.0
    assert 0 < rows["INT4"]["kl"] < rows["INT2"]["kl"]
    bits = [row["bits_per_weight"] for row in rows.values()]
    assert bits == [16.0, 4.5, 2.5, 4.5, 2.5], "a float16 scale for every 32 weights"
    assert len({row["tokens"] for row in rows.values()}) == 1
    for label in ("INT4", "INT2"):
        assert rows[label]["size_bytes"] == finished.artifacts[label].size_bytes
    assert rows["INT2"]["size_bytes"] < rows["INT4"]["size_bytes"]
    assert any(line.startswith("INT2: KL") for line in finished.lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU serves, so there is one figure")
def test_what_answers_in_the_chat_is_measured_as_well(finished: RecordingContext) -> None:
    rows = {row["label"]: row for row in finished.rows}
    assert [label for label, row in rows.items() if "served_kl" in row] == ["INT4", "INT2"]
    for label in ("INT4", "INT2"):
        row = rows[label]
        assert 0 < abs(row["served_kl"] - row["kl"]) < 0.02, "activations of 8 bits"
        assert row["served_by"].startswith(f"native C, {label}, 8-bit activations")
        assert any(
            line.startswith(f"{label} as served by native C, {label}, 8-bit activations")
            and f"KL {row['served_kl']:.3f}" in line
            for line in finished.lines
        )


def test_the_curves_are_complete(finished: RecordingContext) -> None:
    series = {name for name, _, _ in finished.points}
    assert series == {
        "int4_block_before",
        "int4_block_after",
        "int2_block_before",
        "int2_block_after",
        "jsd",
        "grad_norm",
        "lr",
        "tokens_per_s",
        "held_out_kl_int2",
        "int4_tokens",
        "int2_tokens",
        "int2_distill_tokens",
    }
    assert list(finished.curve("int4_block_after")) == [0, 1]
    assert list(finished.curve("jsd")) == list(range(dict(finished.stages)["int2_distill"]))


def test_the_same_config_and_seed_give_the_same_bits_and_another_seed_does_not(
    finished: RecordingContext, tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert digests(quantized(tiny_config(tiny_model_dir), tmp_path / "again")) == digests(finished)
    other = quantized(
        tiny_config(tiny_model_dir, seed=1, measure__baselines=False), tmp_path / "other"
    )
    assert [row["label"] for row in other.rows] == ["FP16", "INT4", "INT2"]
    assert digests(other)["INT2"] != digests(finished)["INT2"]


@pytest.mark.parametrize("checks", [30, 38, 46, 54, 62])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    finished: RecordingContext, tiny_model_dir: Path, tmp_path: Path, checks: int
) -> None:
    config = tiny_config(tiny_model_dir)
    with pytest.raises(Stop):
        quantized(config, tmp_path / "run", stop_after(checks))
    resumed = quantized(config, tmp_path / "run")
    assert digests(resumed) == digests(finished)


def test_round_to_nearest_is_the_baseline_of_the_other_method(
    finished: RecordingContext, tiny_model_dir: Path, tmp_path: Path
) -> None:
    context = quantized(tiny_config(tiny_model_dir, "rtn"), tmp_path)
    rows = {row["label"]: row for row in context.rows}
    assert list(rows) == ["FP16", "INT4", "INT2"]
    baselines = {row["label"]: row for row in finished.rows}
    for precision in ("INT4", "INT2"):
        assert rows[precision]["kl"] == baselines[f"RTN {precision}"]["kl"]
    for name in ("int4", "int2"):
        assert set(context.curve(f"{name}_tokens").values()) == {0.0}, "no token was used"
    assert not context.curve("jsd")


def test_layers_that_do_not_fit_are_left_alone_and_logged(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_model_dir, "rtn", int4__group_size=0, int2__group_size=0)
    per_channel = quantized(config, tmp_path / "per channel")
    assert not [line for line in per_channel.lines if "skips" in line]
    with pytest.raises(UserError) as caught:
        quantized(tiny_config(tiny_model_dir, int2__group_size=128), tmp_path / "too wide")
    assert caught.value.code == "nothing_to_quantize"


def test_a_gpu_that_is_not_there_is_refused(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as caught:
        quantized(tiny_config(tiny_model_dir, device="cuda"), tmp_path)
    assert caught.value.code == "no_such_device"


def test_the_teacher_is_a_frozen_copy_in_the_compute_dtype(tiny: LoadedModel) -> None:
    before = tiny.model.dtype
    twin = placed_copy(tiny.model, torch.device("cpu"))
    assert tiny.model.dtype == before == torch.float32
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_weights_that_are_in_the_compute_dtype_are_not_held_twice(tiny: LoadedModel) -> None:
    cpu = torch.device("cpu")
    stored: Any = copy.deepcopy(tiny.model)
    stored.to(compute_dtype(cpu))
    twin = placed_copy(stored, cpu)
    assert twin is not stored
    places = [
        {parameter.data_ptr() for parameter in model.parameters()} for model in (stored, twin)
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("method", ["rotated_upq", "rtn"])
def test_a_model_stored_in_16_bits_gives_the_bits_of_the_same_values_in_float32(
    method: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    stored = {key: value.bfloat16() for key, value in load_file(tiny_model_dir / WEIGHTS).items()}
    # Greedy: the seed of sampled answers follows from the hashes of the files.
    changes = {"embedding_bits": 8, "data__answer_temperature": 0.0}
    found = []
    for name, dtype in (("short", torch.bfloat16), ("long", torch.float32)):
        folder = tmp_path / name
        shutil.copytree(tiny_model_dir, folder)
        tensors = {key: value.to(dtype) for key, value in stored.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        context = quantized(tiny_config(folder, method, **changes), tmp_path / f"{name} run")
        fidelity = [(row["label"], row["kl"], row["top1"], row["ppl"]) for row in context.rows]
        found.append((digests(context), fidelity))
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_smoke_preset_runs_on_the_bundled_model(bundled: LoadedModel, tmp_path: Path) -> None:
    config = dataclasses.replace(preset("smoke", "upq"), threads=torch.get_num_threads())
    assert config.model.source == "bundled"
    context = quantized(config, tmp_path)
    rows = {row["label"]: row for row in context.rows}
    assert list(rows) == ["FP16", "INT4", "INT2", "RTN INT4", "RTN INT2"]
    assert rows["INT4"]["kl"] < 0.5
    assert rows["INT2"]["kl"] < rows["RTN INT2"]["kl"], "training beats rounding"
    assert 2.0 < rows["INT2"]["bits_per_weight"] < 2.5
    assert bundled.info.files == context.artifacts["INT2"].manifest["base_model"]["files"]


def test_8_bit_embeddings_make_the_artifacts_smaller_and_leave_the_layers_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    plain, packed = (
        quantized(tiny_config(tiny_model_dir, "rtn", embedding_bits=bits), tmp_path / str(bits))
        for bits in (16, 8)
    )
    for row, baseline in zip(packed.rows[1:], plain.rows[1:], strict=True):
        assert row["label"] == baseline["label"]
        assert row["bits_per_weight"] == baseline["bits_per_weight"]
        assert row["size_bytes"] < baseline["size_bytes"] - 262 * 64 * 2
        assert row["memory_bytes"] < baseline["memory_bytes"]
        assert 0 < abs(row["kl"] - baseline["kl"]) < 0.02
