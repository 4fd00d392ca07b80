"""What a run is said to need of a GPU is what an H200 measured, and less where settings save memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.large_models import folder_of
from upq.config import Precision, RunConfig, preset, with_settings
from upq.models import Shape
from upq.quantize.memory import (
    CUDA_BYTES,
    block_bytes,
    gpu_needs,
    memory_bytes,
    shape_of,
)

GB = 10**9
SAVING = {
    "int2.distill.optimizer_bits": 8,
    "int2.distill.checkpointing": True,
    "int2.distill.teacher": "int4",
    "int2.distill.batch_tokens": 8192,
}


def run_of(
    parent: Path, name: str, start: str, method: str, **changes: Any
) -> tuple[RunConfig, Shape]:
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    source = {"model.source": str(folder_of(name, parent))}
    config = with_settings(preset(start, method), source | dotted)
    return config, shape_of(config)


@pytest.mark.parametrize(
    ("name", "method", "measured"),
    [
        ("Llama-3.1-8B", "efficientqat", 4.8),
        ("Llama-2-70B", "efficientqat", 17.2),
        ("Llama-3.1-8B", "gptq", 9.5),
    ],
)
def test_a_block_takes_what_was_measured(
    tmp_path: Path, name: str, method: str, measured: float
) -> None:
    config, shape = run_of(tmp_path, name, "paper", method)
    block = 2 * shape.quantized / shape.depth if method == "efficientqat" else 0
    found = block_bytes(config.int2, shape) + block
    assert found == pytest.approx(measured * GB, rel=0.1)


@pytest.mark.parametrize(
    ("name", "changes", "measured"),
    [
        ("Llama-3.1-8B", SAVING, 62.9),
        ("SmolLM2-135M", {"int2.distill.batch_tokens": 16_384}, 14.8),
    ],
)
def test_a_distillation_takes_what_was_measured(
    tmp_path: Path, name: str, changes: dict[str, Any], measured: float
) -> None:
    measured_on = {"int2.grid": "odd", "int2.distill.weight_lr": 3e-4}
    config, shape = run_of(tmp_path, name, "overnight", "rotated_upq", **changes | measured_on)
    found = gpu_needs(config, shape, 140 * GB)["int2_distill"] - CUDA_BYTES
    assert found == pytest.approx(measured * GB, rel=0.1)


def test_the_shape_of_a_model_has_its_blocks_its_width_and_its_words(tmp_path: Path) -> None:
    _, shape = run_of(tmp_path, "Llama-3.1-8B", "quick", "upq")
    found = (shape.depth, shape.widest, shape.hidden, shape.vocabulary)
    assert found == (32, 14336, 4096, 128256)


@pytest.mark.parametrize("change", [*SAVING.items(), ("int2.distill.weight_lr", 0.0)], ids=str)
def test_every_saving_takes_less_memory(tmp_path: Path, change: tuple[str, Any]) -> None:
    plain, shape = run_of(
        tmp_path, "Llama-3.1-8B", "overnight", "upq", int2__distill__batch_tokens=16_384
    )
    saving = with_settings(plain, dict([change]))
    less, more = (gpu_needs(one, shape, 140 * GB) for one in (saving, plain))
    assert less["int2_distill"] < more["int2_distill"]
    assert less["int4"] == more["int4"]


def test_a_model_that_takes_more_than_half_of_a_gpu_stays_off_it(tmp_path: Path) -> None:
    config, shape = run_of(tmp_path, "Llama-3.1-8B", "overnight", "gptq")
    blocks = 2 * shape.quantized
    on, off = (gpu_needs(config, shape, size * GB)["data"] for size in (33, 32))
    assert on - off == blocks


def test_codes_alone_leave_the_model_as_the_largest_part(tmp_path: Path) -> None:
    """E2E-QP, which measured 36 GB while all weights were there beside the codes."""
    changes = SAVING | {"int2.distill.loss": "next_token", "int2.distill.weight_lr": 0.0}
    config, shape = run_of(tmp_path, "Llama-3.1-8B", "overnight", "upq", **changes)
    needs = gpu_needs(config, shape, 140 * GB)
    assert needs["int2_distill"] < needs["data"] == 2 * shape.parameters + CUDA_BYTES


def test_what_is_trained_on_a_gpu_takes_no_memory_of_the_machine(tmp_path: Path) -> None:
    config, shape = run_of(tmp_path, "Llama-3.1-8B", "overnight", "upq")
    on_gpu, on_cpu = (memory_bytes(config, shape, size) for size in (140 * GB, 0))
    assert on_gpu < on_cpu - 4 * shape.quantized


def test_every_stage_of_a_method_has_its_need(tmp_path: Path) -> None:
    config, shape = run_of(tmp_path, "SmolLM2-135M", "quick", "efficientqat")
    needs = gpu_needs(config, shape, 140 * GB)
    stages = [
        f"{one.key}{end}" for one in (Precision.INT4, Precision.INT2) for end in ("", "_distill")
    ]
    assert set(needs) == {"data", "measure", *stages}


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_in_another_basis_stands_beside_the_given_one(tmp_path: Path, tied: bool) -> None:
    plain, shape = run_of(tmp_path, "Llama-3.1-8B", "quick", "upq", int2__start="fp16")
    shape = replace(shape, tied=tied)
    absorbed = with_settings(plain, {"int4.rotation": "absorbed", "int2.rotation": "absorbed"})
    values = shape.parameters + tied * shape.head
    on_cpu = memory_bytes(absorbed, shape, 0) - memory_bytes(plain, shape, 0)
    assert on_cpu == values * (shape.stored_bytes + 2)
    for gpu, more in ((80 * GB, 2 * values), (40 * GB, 2 * (values - shape.quantized))):
        before, after = (gpu_needs(config, shape, gpu) for config in (plain, absorbed))
        assert after["data"] == before["data"]
        for stage in ("int4", "int2", "int2_distill", "measure"):
            assert after[stage] - before[stage] == more, (gpu, stage)
