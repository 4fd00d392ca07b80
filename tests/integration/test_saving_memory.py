"""The options that save memory while distilling, in whole runs: INT4 or kept states as teacher, 8-bit moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.reference import dequantize
from tests.support.helpers import RecordingContext, examples, tiny_config
from upq.data import collate
from upq.errors import UserError
from upq.layers import INT4, FixedCodesLinear, fake_quant_layers
from upq.models import LoadedModel, last_hidden, plan_layers
from upq.quantize import stages
from upq.quantize.pipeline import run_quantization
from upq.training import packed_teacher
from upq.training.distill import Distillation, distill


@pytest.mark.parametrize("teacher", ["int4", "cached"])
def test_a_run_with_every_saving_leaves_two_measured_artifacts(
    tiny_model_dir: Path, tmp_path: Path, teacher: str
) -> None:
    context = RecordingContext(tmp_path)
    saving = {"checkpointing": True, "optimizer_bits": 8, "teacher": teacher, "norm_lr": 1e-3}
    changes = {f"int2__distill__{name}": value for name, value in saving.items()}
    run_quantization(tiny_config(tiny_model_dir, **changes), context)
    assert [row["label"] for row in context.rows][:3] == ["FP16", "INT4", "INT2"]
    losses = list(context.curve("jsd").values())
    assert len(losses) >= 3
    assert losses[-1] < 1.5 * losses[0]


def test_int4_cannot_teach_itself(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_model_dir, int4__distill__tokens=100, int4__distill__teacher="int4")
    with pytest.raises(UserError, match="no INT4 model yet") as caught:
        run_quantization(config, RecordingContext(tmp_path))
    assert caught.value.code == "bad_config"


def test_a_packed_teacher_is_the_model_that_is_stored(tiny: LoadedModel) -> None:
    model = tiny.model
    packed = {
        layer.name: INT4.pack(weight, *INT4.fit(weight, 16))
        for layer in plan_layers(model, 16)
        for weight in [model.get_parameter(f"{layer.name}.weight")]
    }
    teacher = packed_teacher(model, packed, {"model.norm.weight": torch.full((64,), 2.0)})
    ids = collate(examples(2)).ids
    found = last_hidden(teacher, ids)
    assert not torch.equal(found, last_hidden(model, ids))
    with torch.no_grad():
        for name, one in packed.items():
            model.get_parameter(f"{name}.weight").copy_(dequantize(one))
        model.get_parameter("model.norm.weight").fill_(2.0)
    torch.testing.assert_close(found, last_hidden(model, ids))


def test_where_no_weight_learns_the_student_comes_with_codes_alone(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def looking(task: Distillation, *others: Any) -> None:
        layers = dict(fake_quant_layers(task.student))
        assert layers
        assert all(isinstance(layer, FixedCodesLinear) for layer in layers.values())
        found.extend(
            parameter.numel() for layer in layers.values() for parameter in layer.parameters()
        )
        distill(task, *others)

    monkeypatch.setattr(stages, "distill", looking)
    run_quantization(tiny_config(tiny_model_dir, "efficientqat"), RecordingContext(tmp_path))
    assert max(found) <= 128 * 64 // 32, "scales and zeros, one for each group of 32"
