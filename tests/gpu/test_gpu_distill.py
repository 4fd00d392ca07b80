"""Distillation on an NVIDIA GPU with all that saves memory there: it learns, stops, and goes on where it stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.gpu_cases import IS_SIMULATED
from tests.support.helpers import RecordingContext, Stop, examples, stop_after
from upq.config import DistillConfig
from upq.layers import INT2, FakeQuantLinear, Latent, swap_linears
from upq.models import LoadedModel, copy_to_quantize, place, plan_layers
from upq.quantize import checkpoint
from upq.training.distill import Distillation, distill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
DATA, GROUP = examples(8, 32), 32
#: Passes over the data, of four batches each.
PASSES, BATCH_TOKENS = 3, 64
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "8-bit moments, recomputed blocks, cached teacher, norms": {
        "optimizer_bits": 8, "checkpointing": True, "teacher": "cached", "norm_lr": 0.01,
    },
    "E2E-QP": {
        "optimizer_bits": 8, "checkpointing": True, "loss": "next_token", "weight_lr": 0.0,
        "scale_lr": 0.03,
    },
    "accumulation": {"accumulation": 3, "beta": 0.0},
    "weights in steps of their groups": {"weight_unit": "group", "norm_lr": 0.01},
}  # fmt: skip


def losses(
    model: Any, folder: Path, config: DistillConfig, stop_at: int = 10**9
) -> dict[int, float]:
    """Loss by step of a fresh student, from what is in the folder on to check number `stop_at` or the end."""
    names = [layer.name for layer in plan_layers(model, GROUP) if layer.quantize]
    student = copy_to_quantize(model, names)

    def make(_: str, linear: nn.Linear) -> FakeQuantLinear:
        weight = linear.weight.float()
        return FakeQuantLinear(Latent(weight, *INT2.fit(weight, GROUP, "absmax")), None, INT2)

    swap_linears(student, names, make)
    context = RecordingContext(folder, stop_after(stop_at))
    task = Distillation(student, model, DATA, config)
    with contextlib.suppress(Stop):
        distill(task, context, checkpoint.Steps(folder))
    return context.curve(config.loss)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_distillation_learns_and_goes_on_where_it_was_stopped(
    tiny: LoadedModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    place(tiny.model, torch.device("cuda"), torch.bfloat16)
    tokens = PASSES * sum(len(example.ids) for example in DATA)
    start: dict[str, Any] = {"weight_lr": 0.05, "scale_lr": 0.01, "checkpoint_seconds": 0.0}
    config = DistillConfig(tokens=tokens, batch_tokens=BATCH_TOKENS, **start | changes)
    whole = losses(tiny.model, tmp_path / "whole", config)
    some = len(whole) // 3
    assert sum(list(whole.values())[-some:]) < sum(list(whole.values())[:some])
    # The cached teacher asks for each example once, before the first step; each batch asks once.
    asked = len(DATA) if config.teacher == "cached" else 0
    before = losses(tiny.model, tmp_path / "parts", config, asked + 2 * config.accumulation + 2)
    behind = losses(tiny.model, tmp_path / "parts", config)
    assert before
    assert len(behind) < len(whole), "it went on from a checkpoint"
    # A GPU's attention adds up gradients in any order.
    near = 0 if IS_SIMULATED else 0.02
    assert before | behind == pytest.approx(whole, rel=near, abs=0)
