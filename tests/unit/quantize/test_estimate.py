"""Sizes are exact, times follow the work, and a model that cannot be quantized is refused before a run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig

from kernels.packing import PackedWeight
from kernels.transform import Transform
from tests.conftest import make_tokenizer
from tests.support.families import family_folder
from tests.support.helpers import tiny_config
from tests.unit.models.test_structure import SHAPE, build
from upq.artifact import assembly
from upq.config import METHODS, PrecisionConfig
from upq.errors import UserError
from upq.layers import INT2, INT4, Grid, grid_of
from upq.models import LoadedModel, inspect, load, plan_layers
from upq.quantize.absorb import absorbed
from upq.quantize.estimate import estimate, measured_rates, work
from upq.quantize.memory import gpu_needs
from upq.store import Run, Store


def half(loaded: LoadedModel, folder: Path) -> Path:
    """The model saved in float16, so that an artifact can hold the rest of it in two bytes each."""
    loaded.model.half().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def surrounded(grid: Grid, weight: torch.Tensor, config: PrecisionConfig) -> PackedWeight:
    """A packed layer with everything around it that the config asks for."""
    packed = grid.pack(weight, *grid.fit(weight, config.group_size, "absmax"))
    rows, columns = weight.shape
    around = Transform(
        scale_in=None if config.rotation == "none" else torch.ones(columns),
        scale_out=torch.ones(rows) if config.rotation == "both" else None,
    )
    if config.codebook == "lattice":
        around = dataclasses.replace(around, affine=torch.eye(4), shift=torch.zeros(4))
    return dataclasses.replace(packed, transform=around if around.tensors else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": "integer_zero", "group_size": 32},
        {"rotation": "input", "group_size": 0},
        {"rotation": "both", "rounding": "ldlq", "codebook": "lattice", "group_size": 64},
    ],
    ids=["zeros", "rotated", "lattice"],
)
def test_the_sizes_count_zeros_and_what_surrounds_a_matrix(
    tiny: LoadedModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = half(tiny, tmp_path / "half")
    both = {f"{one}__{name}": value for one in ("int4", "int2") for name, value in changes.items()}
    config = tiny_config(folder, **both)
    found, loaded = estimate(config, {}), load(str(folder))
    for bits, size, one in ((4, found.int4_bytes, config.int4), (2, found.int2_bytes, config.int2)):
        grid, packed = grid_of(one.grid, bits), {}
        for layer in plan_layers(loaded.model, one.group_size):
            weight = loaded.model.get_parameter(f"{layer.name}.weight").float()
            packed[layer.name] = surrounded(grid, weight, one)
        artifact = assembly.build("X", packed, loaded, config)
        assert sum(tensor.nbytes for tensor in artifact.tensors.values()) == size


@pytest.mark.parametrize("embedding_bits", [16, 8, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group", [0, 16, 32])
def test_the_sizes_are_those_of_the_artifacts_to_the_byte(
    tiny: LoadedModel, tmp_path: Path, group: int, tied: bool, embedding_bits: int
) -> None:
    if not tied:
        tiny = dataclasses.replace(tiny, model=build(LlamaConfig(**SHAPE)))
    folder = half(tiny, tmp_path / "half")
    config = tiny_config(
        folder, embedding_bits=embedding_bits, int4__group_size=group, int2__group_size=group
    )
    found, loaded = estimate(config, {}), load(str(folder))
    for grid, size in ((INT4, found.int4_bytes), (INT2, found.int2_bytes)):
        packed = {}
        for one in plan_layers(loaded.model, group):
            weight = loaded.model.get_parameter(f"{one.name}.weight")
            packed[one.name] = grid.pack(weight, *grid.fit(weight, group, "absmax"))
        artifact = assembly.build("X", packed, loaded, config)
        assert sum(one.nbytes for one in artifact.tensors.values()) == size
    assert found.fp16_bytes == 2 * loaded.info.parameters
    assert found.skipped == []


@pytest.mark.parametrize("embedding_bits", [16, 8, 4])
def test_the_sizes_count_the_head_that_an_absorbed_rotation_parts(
    tiny: LoadedModel, tmp_path: Path, embedding_bits: int
) -> None:
    folder = half(tiny, tmp_path / "half")
    changes = {"int2__rotation": "absorbed", "int2__grid": "signed", "int2__group_size": 32}
    changes["int2__start"] = "fp16"
    config = tiny_config(folder, embedding_bits=embedding_bits, **changes)
    loaded, grid = load(str(folder)), grid_of("signed", 2)
    model, packed = absorbed(loaded.model, config.int2, 0).half(), {}
    for one in plan_layers(model, 32):
        weight = model.get_parameter(f"{one.name}.weight").float()
        packed[one.name] = grid.pack(weight, *grid.fit(weight, 32, "absmax"))
    artifact = assembly.build("INT2", packed, dataclasses.replace(loaded, model=model), config)
    stored = sum(one.nbytes for one in artifact.tensors.values())
    assert stored == estimate(config, {}).int2_bytes


def test_a_mixture_has_the_size_of_all_its_experts_and_the_time_of_those_that_a_token_meets(
    tmp_path: Path,
) -> None:
    sizes, shapes, config = [], [], tiny_config(tmp_path)
    for top in (1, 4):
        folder = family_folder(tmp_path / str(top), "mixtral", num_experts_per_tok=top)
        config = tiny_config(folder)
        found, loaded = estimate(config, {}), load(str(folder))
        shapes.append(inspect(str(folder), None, 32, 32))
        packed = {}
        for layer in plan_layers(loaded.model, 32):
            if layer.quantize:
                weight = loaded.model.get_parameter(f"{layer.name}.weight").float()
                packed[layer.name] = INT4.pack(weight, *INT4.fit(weight, 32))
        artifact = assembly.build("X", packed, loaded, config)
        stored = sum(tensor.nbytes for tensor in artifact.tensors.values())
        assert stored == found.int4_bytes
        assert found.skipped[0].startswith("model.layers.0.mlp.gate.weight: the router")
        sizes.append(stored)
    assert sizes[0] == sizes[1]
    one, four = shapes
    expert = 64 * 256 + 128 * 64
    assert four.active == four.quantized == one.active + 2 * 3 * expert
    assert (one.busiest, four.busiest) == (64 + 128, 4 * (64 + 128))
    spent, most = work(config, one), work(config, four)
    assert all(spent[stage] < most[stage] for stage in spent)


@pytest.mark.parametrize(
    ("kind", "settings", "parameters", "active"),
    [
        pytest.param(
            "qwen3_moe",
            {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32}
            | {"num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768}
            | {"num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936},
            30.5,
            3.3,
            marks=pytest.mark.slow,
        ),
        ("mixtral", {}, 46.7, 12.9),
    ],
)
def test_published_mixtures_have_the_published_numbers_of_weights(
    tmp_path: Path, kind: str, settings: dict[str, Any], parameters: float, active: float
) -> None:
    """In billions: of all, and of those that a token meets, embedding and head among them."""
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    shape = inspect(str(tmp_path), None, 0, 0)
    assert shape.parameters / 1e9 == pytest.approx(parameters, abs=0.05)
    assert (shape.active + 2 * shape.head) / 1e9 == pytest.approx(active, abs=0.05)


def test_a_layer_that_does_not_fit_is_listed_with_its_reason(tmp_path: Path) -> None:
    build(LlamaConfig(**{**SHAPE, "intermediate_size": 96})).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    found = estimate(tiny_config(tmp_path, int2__group_size=64), {})
    assert found.skipped == [
        f"model.layers.{index}.mlp.down_proj: group size 64 does not divide 96 inputs"
        for index in range(3)
    ]


def test_an_embedding_that_must_stay_is_listed_only_where_it_was_to_be_packed(
    tmp_path: Path,
) -> None:
    build(Gemma3TextConfig(**SHAPE, head_dim=16)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    asked, default = (estimate(tiny_config(tmp_path, embedding_bits=bits), {}) for bits in (8, 16))
    assert [line.partition(":")[0] for line in asked.skipped] == ["model.embed_tokens"]
    assert default.skipped == []
    assert asked.int2_bytes == default.int2_bytes


@pytest.mark.parametrize(
    "more",
    [
        {"int2__distill__tokens": 10_000_000},
        {"int4__blockwise__tokens": 10_000_000},
        {"int2__blockwise__epochs": 90, "int2__blockwise__tokens": 1_000_000},
        {"int4__distill__tokens": 10_000_000},
        {"int2__rounding": "ldlq", "int2__descent_passes": 100, "int2__blockwise__tokens": 10**6},
        {"data__held_out": 1000, "measure__answer_tokens": 4096},
        {"data__answers_per_prompt": 64, "data__max_rows": 400},
        {"data__own_prompts": 10_000},
    ],
    ids=str,
)
def test_more_work_takes_more_time(tiny_model_dir: Path, more: dict[str, Any]) -> None:
    less, bigger = (estimate(tiny_config(tiny_model_dir, **one), {}) for one in ({}, more))
    assert less.seconds_low < less.seconds_high
    assert bigger.seconds_low > less.seconds_low


def test_round_to_nearest_needs_no_training(tiny_model_dir: Path) -> None:
    config = tiny_config(tiny_model_dir, "rtn")
    amounts = work(config, inspect(str(tiny_model_dir), None, 32, 32))
    assert set(amounts) == {"data", "measure"}
    trained = estimate(tiny_config(tiny_model_dir), {})
    assert estimate(config, {}).memory_bytes < trained.memory_bytes


def test_a_method_has_the_work_of_its_stages(tiny_model_dir: Path) -> None:
    shape = inspect(str(tiny_model_dir), None, 32, 32)
    weights = sum(rows * columns for rows, columns in shape.int2.values())
    stages = {
        method: set(work(tiny_config(tiny_model_dir, method), shape)) - {"data", "measure"}
        for method in METHODS
    }
    assert stages["upq"] == stages["rotated_upq"] == {"int4", "int2", "int2_distill"}
    assert stages["efficientqat"] == {"int4", "int4_distill", "int2", "int2_distill"}
    assert stages["unisvq"] == stages["gptq"] == {"int4", "int2"}
    gptq = work(tiny_config(tiny_model_dir, "gptq", int4__blockwise__tokens=100), shape)
    hessians = 2 * (64**2 + 64**2 + 128**2)
    solving = 2 * (64 * 64**2 * 2 + 32 * 64**2 * 2 + 128 * 64**2 * 2 + 64 * 128**2)
    assert gptq["int4"] == 100 * (4 * weights + hessians) + solving


def test_learning_with_small_moments_or_of_scales_alone_takes_less_memory(
    tiny_model_dir: Path,
) -> None:
    configs = (
        tiny_config(tiny_model_dir),
        tiny_config(tiny_model_dir, int2__distill__optimizer_bits=8),
        tiny_config(tiny_model_dir, int2__distill__weight_lr=0.0),
    )
    whole, small, scales = (estimate(one, {}).memory_bytes for one in configs)
    assert scales < small < whole


def test_a_gpu_has_an_estimate_of_its_own_and_a_cpu_has_none(tiny_model_dir: Path) -> None:
    config = tiny_config(tiny_model_dir)
    on_cpu, on_gpu = (estimate(config, {}, gpu) for gpu in (0, 10**10))
    assert on_cpu.gpu_bytes is None
    needs = gpu_needs(config, inspect(str(tiny_model_dir), None, 32, 32), 10**10)
    assert on_gpu.gpu_bytes == max(needs.values())
    assert on_gpu.seconds_high < on_cpu.seconds_high


def test_a_first_guess_says_so_and_measured_speeds_replace_it(tiny_model_dir: Path) -> None:
    config = tiny_config(tiny_model_dir, int2__distill__tokens=10_000_000)
    guess = estimate(config, {})
    assert "first guess" in guess.notes[0]
    amounts = work(config, inspect(str(tiny_model_dir), None, 32, 32))
    fast = estimate(config, dict.fromkeys(amounts, 1e15))
    assert not fast.notes
    assert fast.seconds_high < guess.seconds_low
    assert fast.seconds_low == pytest.approx(16.0, abs=1.0), "only the fixed part is left"


def finished_run(store: Store, config: Any, seconds: float) -> Run:
    run = store.run(store.enqueue(config))
    times = {
        name: {"started": 100.0, "ended": 100.0 + seconds, "total": 1}
        for name in ("data", "int4", "int2", "int2_distill", "measure")
    }
    return dataclasses.replace(run, state="done", attempt=1, stages=times)


def test_a_run_that_stood_aside_teaches_by_the_time_it_worked(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "upq.db")
    run = finished_run(store, tiny_config(tiny_model_dir), 500.0)
    amounts = work(tiny_config(tiny_model_dir), inspect(str(tiny_model_dir), None, 32, 32))
    stages = {name: {**times, "seconds": 10.0} for name, times in run.stages.items()}
    aside = dataclasses.replace(run, attempt=2, stages=stages)
    assert measured_rates([aside]) == {name: amount / 10.0 for name, amount in amounts.items()}
    store.close()


def test_each_speed_comes_from_the_newest_finished_run_that_had_the_stage(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "upq.db")
    config = tiny_config(tiny_model_dir)
    run = finished_run(store, config, 10.0)
    amounts = work(config, inspect(str(tiny_model_dir), None, 32, 32))
    rates = measured_rates([dataclasses.replace(run, state="failed"), run])
    assert rates == {name: amount / 10.0 for name, amount in amounts.items()}
    assert measured_rates([dataclasses.replace(run, attempt=0)]) == {}, "it was made elsewhere"
    assert measured_rates([dataclasses.replace(run, attempt=2)]) == {}, "how long it paused is lost"
    assert measured_rates([finished_run(store, config, 0.5)]) == {}, "too short to tell"
    no_training = tiny_config(tiny_model_dir, "rtn")
    rounded = finished_run(store, no_training, 20.0)
    mixed = measured_rates([rounded, run])
    small = work(no_training, inspect(str(tiny_model_dir), None, 32, 32))["data"]
    assert small < amounts["data"], "only the held-out answers are written"
    assert mixed["data"] == small / 20.0, "the newer one"
    assert mixed["int2_distill"] == rates["int2_distill"], "the newer one trained nothing"
    gone = finished_run(store, tiny_config(tmp_path / "gone"), 10.0)
    assert measured_rates([gone]) == {}
    store.close()


def test_a_model_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        estimate(tiny_config(tmp_path / "nothing"), {})
