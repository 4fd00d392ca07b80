"""Every method from config to measured artifacts on the tiny model: what is stored, what it measures, and repeats."""

import copy
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.reference import dequantize, weight_of
from tests.support.helpers import RecordingContext, digest, tiny_config
from upq import data
from upq.artifact import Artifact, assembly
from upq.config import METHODS, Precision, RunConfig
from upq.errors import UserError
from upq.evaluation import Reference
from upq.layers import Grid, Latent, grid_of, packed_layers, replace_module
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
#: Grids of INT4 and of INT2 that any method may be given.
GRIDS_OF_INT4, GRIDS_OF_INT2 = ("odd", "signed"), ("odd", "signed", "q2_k")


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


def check_measured(config: RunConfig, context: RecordingContext, folder: Path) -> None:
    """The KL that a run has measured is that of the weights that the stored codes stand for."""
    loaded = loading.load(config.model.source)
    teacher = placed_copy(loaded.model, prepare(config))
    again: Any = RecordingContext(folder)
    again.answers = copy.deepcopy(context.answers)
    held_out = data.build(config, replace(loaded, model=teacher), again).held_out
    reference = Reference(teacher, held_out, again.check)
    rows = {row["label"]: row for row in context.rows}
    for precision, artifact in context.artifacts.items():
        found = reference.measure(dense(artifact, teacher.dtype), again.check)
        assert rows[precision]["kl"] == pytest.approx(found.kl, rel=0.05), "up to 16-bit rounding"
        assert rows[precision]["tokens"] == found.tokens


@methods
def test_the_measured_kl_is_that_of_the_weights_that_the_stored_codes_stand_for(
    finished: dict[str, RecordingContext], tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    check_measured(config_of(tiny_model_dir, method), finished[method], tmp_path)


def trained_layers(folder: Path, precision: str) -> dict[str, Latent]:
    """The layers of a precision by name as its last stage left them, from the checkpoints of a run in the folder."""
    whole = folder / f"{precision.lower()}-distill" / "done"
    stages = {"": whole}
    if not whole.exists():
        blocks = sorted((folder / precision.lower()).iterdir())
        stages = {f"model.layers.{index}.": block for index, block in enumerate(blocks)}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for prefix, place in stages.items():
        kept = checkpoint.load(place)
        assert kept is not None
        for key, tensor in kept[0].items():
            name, _, part = key.rpartition(":")
            if name != "plain":  # which is before the name of a norm
                parts.setdefault(prefix + name, {})[part] = tensor
    return {name: Latent.of_tensors(tensors) for name, tensors in parts.items()}


def nearest_levels(latent: Latent, grid: Grid) -> torch.Tensor:
    """What training rounds the weight (out, in) to, at scales as they are stored."""
    scale, offset = grid.stored(latent.scale, latent.zero)
    groups = latent.weight.view(*scale.shape, -1)
    offset = None if offset is None else offset.unsqueeze(-1)
    return grid.round(groups, scale.unsqueeze(-1), offset).flatten(1)


def check_stored(context: RecordingContext, precision: str, kind: str) -> None:
    """Every layer of a decoder block is stored on the grid of this kind, as the last stage left it."""
    grid = grid_of(kind, Precision[precision].bits)
    trained = trained_layers(context.folder, precision)
    model, _ = assembly.assemble(context.artifacts[precision])
    stored = {name: layer.packed for name, layer in packed_layers(model) if ".layers." in name}
    assert stored.keys() == trained.keys()
    for name, packed in stored.items():
        assert packed.bits == grid.bits
        assert packed.zeros is None
        if kind == "q2_k":
            assert packed.steps is not None
        else:
            assert (packed.steps, packed.zero) == (None, grid.zero)
        torch.testing.assert_close(dequantize(packed), nearest_levels(trained[name], grid))


@pytest.mark.slow
@methods
@pytest.mark.parametrize("int4", GRIDS_OF_INT4)
@pytest.mark.parametrize("int2", GRIDS_OF_INT2)
def test_any_grid_is_trained_stored_and_measured(
    tiny_model_dir: Path, tmp_path: Path, method: str, int4: str, int2: str
) -> None:
    grids = {"int4__grid": int4, "int2__grid": int2}
    config = tiny_config(tiny_model_dir, method, measure__baselines=False, **grids)
    context = run(config, tmp_path / "run")
    assert [row["label"] for row in context.rows] == ["FP16", "INT4", "INT2"]
    check_stored(context, "INT4", int4)
    check_stored(context, "INT2", int2)
    check_measured(config, context, tmp_path / "check")


@methods
@pytest.mark.parametrize("kind", ["q2_k", "gguf"])
def test_a_grid_of_int2_is_refused_for_int4(tiny_model_dir: Path, method: str, kind: str) -> None:
    sentence = f"int4.grid is {kind}, which is a grid of INT2."
    with pytest.raises(UserError, match=sentence) as caught:
        tiny_config(tiny_model_dir, method, int4__grid=kind)
    assert caught.value.hint == "Use signed."


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
