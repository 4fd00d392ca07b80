"""Every method from config to measured artifacts on the tiny model: what is stored, what it measures, and repeats."""

import copy
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.reference import weight_of
from tests.support.helpers import RecordingContext, digest, tiny_config
from upq import data
from upq.artifact import Artifact, assembly
from upq.config import METHODS, RunConfig
from upq.evaluation import Reference
from upq.layers import Latent, grid_of, packed_layers, replace_module
from upq.models import loading, placed_copy
from upq.quantize import checkpoint
from upq.quantize.pipeline import prepare, run_quantization

methods = pytest.mark.parametrize("method", METHODS)
#: What lies around the packed codes of each method's layers; of INT2 alone what its own grid adds.
SURROUNDINGS: dict[str, set[str]] = {
    "rotated_upq": {"scale_in"},
    "portable_upq": set(),
    "upq": set(),
    "efficientqat": {"zero"},
    "unisvq": {"scale_in", "scale_out"},
    "gptq": set(),
    "rtn": set(),
}
OF_INT2 = {"rotated_upq": {"minimum", "steps"}}


def config_of(model: Path, method: str) -> RunConfig:
    return tiny_config(model, method, measure__baselines=False)


def run(config: RunConfig, folder: Path) -> RecordingContext:
    context = RecordingContext(folder)
    run_quantization(config, context)
    return context


@pytest.fixture(scope="module")
def finished(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RecordingContext]:
    """A run of each method; leave them as they are."""
    return {
        method: run(config_of(tiny_model_dir, method), tmp_path_factory.mktemp(method))
        for method in METHODS
    }


def dense(artifact: Artifact, dtype: torch.dtype) -> Any:
    """The artifact's model with plain linears that hold what the codes stand for."""
    model, _ = assembly.assemble(artifact, "cpu", dtype)
    for name, layer in list(packed_layers(model)):
        rows, columns = layer.packed.shape
        plain = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)
        plain.weight.data = weight_of(layer.packed).to(dtype)
        replace_module(model, name, plain)
    return model


@methods
def test_both_artifacts_hold_every_layer_in_its_bits_and_compute_from_packed_codes(
    finished: dict[str, RecordingContext], method: str
) -> None:
    for precision, bits in (("INT4", 4), ("INT2", 2)):
        artifact = finished[method].artifacts[precision]
        model, _ = assembly.assemble(artifact)
        layers = {name: layer for name, layer in packed_layers(model) if name.startswith("model.")}
        assert len(layers) == 2 * 7
        assert {layer.bits for layer in layers.values()} == {bits}
        parts = {name.rpartition(".")[2] for name in artifact.tensors if ".layers." in name}
        own = OF_INT2.get(method, set()) if bits == 2 else set()
        assert parts - {"codes", "scale", "weight"} == SURROUNDINGS[method] | own
        assert artifact.manifest["method"] == method
        assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())


@methods
def test_the_measured_kl_is_that_of_the_weights_that_the_stored_codes_stand_for(
    finished: dict[str, RecordingContext], tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    config = config_of(tiny_model_dir, method)
    loaded = loading.load(config.model.source)
    teacher = placed_copy(loaded.model, prepare(config))
    context: Any = RecordingContext(tmp_path)
    context.answers = copy.deepcopy(finished[method].answers)
    held_out = data.build(config, replace(loaded, model=teacher), context).held_out
    reference = Reference(teacher, held_out, context.check)
    rows = {row["label"]: row for row in finished[method].rows}
    for precision, artifact in finished[method].artifacts.items():
        found = reference.measure(dense(artifact, teacher.dtype), context.check)
        assert rows[precision]["kl"] == pytest.approx(found.kl, rel=0.05), "up to 16-bit rounding"
        assert rows[precision]["tokens"] == found.tokens


@methods
def test_a_run_repeated_gives_the_same_bits(
    finished: dict[str, RecordingContext], tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    again = run(config_of(tiny_model_dir, method), tmp_path)
    for precision, artifact in finished[method].artifacts.items():
        assert digest(again.artifacts[precision]) == digest(artifact)
    assert [row["kl"] for row in again.rows] == [row["kl"] for row in finished[method].rows]


def test_methods_differ_in_what_they_store(finished: dict[str, RecordingContext]) -> None:
    digests = {digest(context.artifacts["INT2"]) for context in finished.values()}
    assert len(digests) == len(METHODS)


def test_end_to_end_training_of_scales_stores_new_scales_under_the_old_codes_and_zeros(
    finished: dict[str, RecordingContext],
) -> None:
    """EfficientQAT's second phase, for both of its precisions."""
    context = finished["efficientqat"]
    for name, precision in (("int4", "INT4"), ("int2", "INT2")):
        blocks = [checkpoint.load(path) for path in sorted((context.folder / name).iterdir())]
        model, _ = assembly.assemble(context.artifacts[precision])
        for layer, module in packed_layers(model):
            if not layer.startswith("model."):
                continue
            packed = module.packed
            _, _, block, inside = layer.split(".", 3)
            kept = blocks[int(block)]
            assert kept is not None
            weight, scale, zero = (
                kept[0][f"{inside}:{one}"] for one in ("weight", "scale", "zero")
            )
            before = Latent(weight, scale, zero).pack(grid_of("integer_zero", packed.bits))
            assert before.zeros is not None
            assert packed.zeros is not None
            assert torch.equal(packed.codes, before.codes)
            assert torch.equal(packed.zeros, before.zeros)
            assert not torch.equal(packed.scale, before.scale)


def test_int2_that_starts_from_int4_starts_from_its_norms_as_well(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trained = {"int4__blockwise__norm_lr": 0.01, "int2__distill__tokens": 0}
    context = run(tiny_config(tiny_model_dir, "upq", **trained), tmp_path)
    model, _ = assembly.assemble(context.artifacts["INT4"])
    successor, _ = assembly.assemble(context.artifacts["INT2"])
    base, _ = assembly.assemble(
        run(tiny_config(tiny_model_dir, "upq"), tmp_path / "plain").artifacts["INT4"]
    )
    for name in (
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    ):
        assert not torch.equal(model.get_parameter(name), base.get_parameter(name))
        assert torch.equal(successor.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize("method", ["rotated_upq", "efficientqat"])
def test_no_model_waits_for_the_garbage_collector(
    method: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """On a GPU it would lie beside the next one: an 8B student of distillation takes most of 80 GB."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run(config_of(tiny_model_dir, method), tmp_path)
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, nn.Module | torch.Tensor)]
        assert not left, {type(one).__name__ for one in left}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
