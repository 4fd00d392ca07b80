"""A run with a target of bits: INT2 keeps some layers in INT4's form, and everything else works as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.helpers import RecordingContext, tiny_config
from upq.artifact import assembly
from upq.config import RunConfig
from upq.decode import NativeEngine
from upq.errors import Cancelled
from upq.layers import packed_layers
from upq.quantize.pipeline import run_quantization

#: INT2 takes 2.5 bits in groups of 32, INT4 4.5: a quarter of the weights may be wide.
TARGET = 3.0


def config_of(model: Path, **changes: object) -> RunConfig:
    settings = {"int2.bits_target": TARGET, "int2.group_size": 32, "measure.baselines": False}
    named = {name.replace(".", "__"): value for name, value in (settings | changes).items()}
    return tiny_config(model, "portable_upq", **named)


def run(model: Path, folder: Path, **changes: object) -> RecordingContext:
    context = RecordingContext(folder)
    run_quantization(config_of(model, **changes), context)
    return context


def test_the_bits_that_were_asked_for_are_spent_and_the_model_answers(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    artifact = run(tiny_model_dir, tmp_path).artifacts["INT2"]
    assert TARGET - 0.5 < artifact.manifest["bits_per_weight"] <= TARGET
    model, _ = assembly.assemble(artifact)
    bits = [layer.bits for name, layer in packed_layers(model) if name.startswith("model.")]
    assert set(bits) == {2, 4}
    tokens = [1, 5, 9, 4]
    exact = model(torch.tensor([tokens])).logits[0, -1]
    served = NativeEngine(model, exact=True).session(1, 8).prefill(0, tokens)
    assert torch.allclose(exact, served, atol=5e-3), "its cache is float16"


def test_a_target_below_int2_keeps_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    context = run(tiny_model_dir, tmp_path, **{"int2.bits_target": 1.0})
    layers = context.artifacts["INT2"].manifest["layers"].values()
    assert {layer["bits"] for layer in layers} - {8} == {2}
    assert any("keeps 0 layers" in line for line in context.lines)


def test_the_choice_and_the_bits_repeat_and_survive_a_stop(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    whole = run(tiny_model_dir, tmp_path / "whole").artifacts["INT2"]
    stopped = RecordingContext(tmp_path / "stopped")

    def stop() -> None:
        if any(stage == "int2" for stage, _ in stopped.stages):
            raise Cancelled

    stopped.stop = stop
    with pytest.raises(Cancelled):
        run_quantization(config_of(tiny_model_dir), stopped)
    stopped.stop = lambda: None
    run_quantization(config_of(tiny_model_dir), stopped)
    resumed = stopped.artifacts["INT2"]
    assert resumed.manifest["layers"] == whole.manifest["layers"]
    assert all(torch.equal(tensor, resumed.tensors[name]) for name, tensor in whole.tensors.items())
    said = [line for line in stopped.lines if "in INT4's form" in line]
    assert len(said) == 1, "the search is not made again"
