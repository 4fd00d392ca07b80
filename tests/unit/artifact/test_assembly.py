"""An artifact put together again computes exactly what its codes stand for, in every style of model."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import PhiConfig

from kernels.packing import PackedWeight
from kernels.reference import weight_of
from kernels.transform import Transform, hadamard_block
from tests.conftest import make_tokenizer
from tests.support.gguf_export_cases import small_model
from tests.support.grids import GRIDS, round_trip
from tests.unit.models.test_structure import SHAPE, STYLES
from tests.unit.models.test_structure import build as build_model
from upq import machine
from upq.artifact import Artifact, assembly
from upq.config import RunConfig
from upq.decode import NativeEngine
from upq.errors import UserError
from upq.layers import (
    INT2,
    INT4,
    INT8,
    Grid,
    PackedEmbedding,
    PackedLinear,
    memory_bytes,
    packed_layers,
)
from upq.models import LoadedModel, load, plan_embeddings, plan_layers

IDS = torch.randint(6, 262, (2, 20), generator=torch.Generator().manual_seed(0))


def packed_of(model: Any, grid: Grid, group: int = 16) -> dict[str, PackedWeight]:
    weights = {
        layer.name: model.get_parameter(f"{layer.name}.weight")
        for layer in plan_layers(model, group)
    }
    return {name: grid.pack(weight, *grid.fit(weight, group)) for name, weight in weights.items()}


def dense_twin(model: Any, grid: Grid, group: int = 16) -> Any:
    """The model with every quantized weight replaced by the values that its codes stand for."""
    twin = copy.deepcopy(model)
    for layer in plan_layers(model, group):
        weight = twin.get_parameter(f"{layer.name}.weight")
        weight.data = round_trip(grid, weight.data, *grid.fit(weight.data, group))
    return twin


def artifact_of(
    loaded: LoadedModel, grid: Grid, group: int = 16, embedding_bits: Literal[16, 8] = 16
) -> Artifact:
    name = next(name for name, one in GRIDS.items() if one == grid)
    config = RunConfig(embedding_bits=embedding_bits)
    return assembly.build(name, packed_of(loaded.model, grid, group), loaded, config)


def surrounded(packed: PackedWeight) -> PackedWeight:
    """The same codes with random zeros for each group, and every part of a transform."""
    rows, columns = packed.shape
    generator = torch.Generator().manual_seed(rows + columns)

    def signs(count: int) -> torch.Tensor:
        sizes = 1 + 0.1 * torch.randn(count, generator=generator)
        return torch.where(torch.rand(count, generator=generator) < 0.5, -sizes, sizes).half()

    around = Transform(
        hadamard_block(columns, 64),
        hadamard_block(rows, 32),
        signs(columns),
        signs(rows),
        torch.eye(4) + 0.1 * torch.randn(4, 4, generator=generator),
        0.1 * torch.randn(4, generator=generator),
    )
    zeros = torch.randint(0, 2**packed.bits, packed.scale.shape, generator=generator).byte()
    return dataclasses.replace(packed, zeros=zeros, transform=around)


def transformed_artifact(loaded: LoadedModel, group: int = 64) -> Artifact:
    packed = packed_of(loaded.model, INT2, group)
    layers = {name: surrounded(weight) for name, weight in packed.items()}
    return assembly.build("INT2", layers, loaded, RunConfig(embedding_bits=8))


def round_embeddings(model: Any) -> None:
    """Replace what an artifact packs of embedding and head by the values that its codes stand for."""
    for layer in plan_embeddings(model):
        if layer.quantize:
            weight = model.get_parameter(f"{layer.name}.weight")
            weight.data = round_trip(INT8, weight.data, *INT8.fit(weight.data, 0, "absmax"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("grid", [INT2, INT4], ids=["INT2", "INT4"])
@pytest.mark.parametrize("style", STYLES)
def test_an_assembled_model_gives_the_logits_of_the_dense_twin(
    style: str, grid: Grid, tmp_path: Path
) -> None:
    original = build_model(STYLES[style][0])
    for name, parameter in original.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    original.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))

    model, tokenizer = assembly.assemble(artifact_of(loaded, grid))
    expected = logits(dense_twin(loaded.model, grid))
    biased = any(layer.bias is not None for _, layer in packed_layers(model))
    assert biased == (style == "qwen2")
    # A dense linear adds its bias inside the product, a packed one behind it: the last bit may differ.
    tolerance = 1e-5 if biased else 0.0
    torch.testing.assert_close(logits(model), expected, atol=tolerance, rtol=tolerance)
    assert (logits(model) - logits(loaded.model)).abs().max() > 1e-4
    assert tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("style", ["llama", "qwen2", "gemma3"])
def test_with_8_bit_embeddings_the_logits_are_those_of_the_dense_twin(
    style: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    build_model(STYLES[style][0]).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    artifact = artifact_of(loaded, INT2, embedding_bits=8)
    model, _ = assembly.assemble(artifact, dtype=dtype)
    twin = dense_twin(loaded.model, INT2)
    round_embeddings(twin)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(dtype)
    tolerance = 0.0 if style != "qwen2" else 1e-5 if dtype == torch.float32 else 2e-2  # the bias
    torch.testing.assert_close(logits(model), logits(twin), atol=tolerance, rtol=tolerance)
    packed = isinstance(model.get_input_embeddings(), PackedEmbedding)
    assert packed == isinstance(model.get_output_embeddings(), PackedLinear) == (style != "gemma3")
    assert artifact.manifest["format_version"] == (4 if packed else 1)


def test_zeros_and_transforms_come_back_as_they_were_stored(tiny: LoadedModel) -> None:
    artifact = transformed_artifact(tiny)
    model, _ = assembly.assemble(artifact, dtype=torch.bfloat16)
    twin = copy.deepcopy(tiny.model)
    round_embeddings(twin)
    for name, layer in packed_layers(model):
        if name != "lm_head":
            given = surrounded(packed_of(tiny.model, INT2, 64)[name])
            assert torch.equal(weight_of(layer.packed), weight_of(given))
            twin.get_submodule(name).weight.data = weight_of(given)
    model, _ = assembly.assemble(artifact)
    torch.testing.assert_close(logits(model), logits(twin), atol=2e-3, rtol=1e-3)
    assert artifact.manifest["format_version"] == 4, "embedding and head"
    assert artifact.manifest["layers"]["model.layers.0.mlp.down_proj"] == {
        "bits": 2, "zero": None, "shape": [64, 128], "groups": 2, "hadamard_in": 64,
        "hadamard_out": 32, "parts": ["affine", "scale_in", "scale_out", "shift", "zero"],
    }  # fmt: skip


def test_a_transform_is_stored_in_the_types_of_the_format_and_counted(tiny: LoadedModel) -> None:
    packed = packed_of(tiny.model, INT2)
    plain = assembly.build("INT2", packed, tiny, RunConfig(embedding_bits=16))
    name = "model.layers.0.mlp.down_proj"
    around = Transform(64, 1, torch.ones(128), torch.ones(64), torch.eye(4).half())
    packed[name] = dataclasses.replace(packed[name], transform=around)
    artifact = assembly.build("INT2", packed, tiny, RunConfig(embedding_bits=16))
    types = {part: artifact.tensors[f"{name}.{part}"].dtype for part in around.tensors}
    assert types == {
        "scale_in": torch.float16, "scale_out": torch.float16, "affine": torch.float32
    }  # fmt: skip
    more = artifact.manifest["bits_per_weight"] - plain.manifest["bits_per_weight"]
    stored = 2 * 128 + 2 * 64 + 4 * 16
    assert more * artifact.manifest["quantized_weights"] == pytest.approx(8 * stored)
    assert (plain.manifest["format_version"], artifact.manifest["format_version"]) == (1, 3)


def test_a_tied_pair_holds_one_copy_of_its_8_bit_codes(tiny: LoadedModel) -> None:
    dense, packed = (artifact_of(tiny, INT2, embedding_bits=bits) for bits in (16, 8))
    model, _ = assembly.assemble(packed)
    assert model.lm_head.codes is model.model.embed_tokens.codes
    assert model.lm_head.scale is model.model.embed_tokens.scale
    assert "lm_head.codes" not in packed.tensors
    saved = 262 * 64 * 4 - 262 * (64 + 2)  # the tiny model is stored and computes in float32
    assert sum(tensor.nbytes for tensor in dense.tensors.values()) - saved == sum(
        tensor.nbytes for tensor in packed.tensors.values()
    )
    assert memory_bytes(assembly.assemble(dense)[0]) - memory_bytes(model) == saved
    for key in ("bits_per_weight", "quantized_weights"):
        assert packed.manifest[key] == dense.manifest[key], "blocks only"
    assert packed.manifest["layers"]["model.embed_tokens"] == {
        "bits": 8, "zero": 128.0, "shape": [262, 64], "groups": 1,
    }  # fmt: skip


def in_version_2(artifact: Artifact) -> tuple[Artifact, dict[str, torch.Tensor]]:
    """(an artifact of version 1 with embedding and head as version 2 had them, the weights that these stand for).

    Version 2: a byte for each weight and a float16 scale for each row, weight = scale * (code - 127.5).
    """
    manifest, tensors = copy.deepcopy(artifact.manifest), dict(artifact.tensors)
    generator, meant = torch.Generator().manual_seed(0), {}
    for name in ("model.embed_tokens", "lm_head"):
        if (weight := tensors.pop(f"{name}.weight", None)) is None:
            continue  # the head of a tied pair, which stands once
        rows, columns = weight.shape
        codes = torch.randint(0, 256, (rows, columns), generator=generator).byte()
        scale = torch.rand(rows, 1, generator=generator).add(0.1).div(100).half()
        tensors |= {f"{name}.codes": codes, f"{name}.scale": scale}
        manifest["layers"][name] = {"bits": 8, "zero": 127.5, "shape": [rows, columns], "groups": 1}
        meant[name] = (scale.double() * (codes.double() - 127.5)).float()
    manifest["format_version"] = 2
    return dataclasses.replace(artifact, manifest=manifest, tensors=tensors), meant


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_pair_of_version_2_means_what_it_meant(
    tiny: LoadedModel, tmp_path: Path, is_tied: bool
) -> None:
    loaded = tiny if is_tied else small_model(tmp_path, tie_word_embeddings=False)
    old, meant = in_version_2(artifact_of(loaded, INT4, 32))
    assert meant.keys() == {"model.embed_tokens"} | ({"lm_head"} if not is_tied else set())
    model, _ = assembly.assemble(old)
    twin = dense_twin(loaded.model, INT4, 32)
    for name, weight in meant.items():
        assert torch.equal(weight_of(model.get_submodule(name).packed), weight)
        twin.get_submodule(name).weight.data = weight
    twin.tie_weights()
    torch.testing.assert_close(logits(model), logits(twin), atol=0.0, rtol=0.0)
    ids = IDS[0].tolist()
    served = NativeEngine(model, exact=True).session(1, len(ids)).prefill(0, ids)
    torch.testing.assert_close(served, logits(twin)[0, -1], atol=1e-2, rtol=1e-2)


def test_a_pair_around_the_middle_of_its_codes_is_still_written_as_version_2(
    tiny: LoadedModel,
) -> None:
    packed, config = packed_of(tiny.model, INT2), RunConfig(embedding_bits=8)
    written = assembly.build("INT2", packed, tiny, config, embedding_grid=Grid(8))
    by_hand, _ = in_version_2(artifact_of(tiny, INT2))
    assert written.manifest["format_version"] == by_hand.manifest["format_version"]
    assert written.manifest["layers"] == by_hand.manifest["layers"]
    assert written.tensors.keys() == by_hand.tensors.keys()


def test_an_untied_head_is_packed_on_its_own_and_keeps_its_bias(tiny: LoadedModel) -> None:
    phi = build_model(PhiConfig(**SHAPE)).requires_grad_(False).eval()
    torch.nn.init.normal_(phi.lm_head.bias)
    loaded = dataclasses.replace(tiny, model=phi)
    model, _ = assembly.assemble(artifact_of(loaded, INT4, embedding_bits=8))
    assert model.lm_head.codes is not model.model.embed_tokens.codes
    assert torch.equal(model.lm_head.bias, loaded.model.lm_head.bias)
    twin = dense_twin(loaded.model, INT4)
    round_embeddings(twin)
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-5, rtol=1e-5)


def test_a_head_left_untied_against_its_config_comes_back_as_it_was(tiny: LoadedModel) -> None:
    tiny.model.lm_head.weight = torch.nn.Parameter(torch.randn(262, 64), requires_grad=False)
    assert tiny.model.config.tie_word_embeddings
    model, _ = assembly.assemble(artifact_of(tiny, INT4))
    assert torch.equal(model.lm_head.weight, tiny.model.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, tiny.model.model.embed_tokens.weight)


def test_transformers_generates_with_8_bit_embeddings(tiny: LoadedModel) -> None:
    model, _ = assembly.assemble(artifact_of(tiny, INT4, embedding_bits=8))
    twin = dense_twin(tiny.model, INT4)
    round_embeddings(twin)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), twin.generate(IDS, **options))


def test_in_bfloat16_too_the_logits_are_those_of_the_dense_twin(tiny: LoadedModel) -> None:
    model, _ = assembly.assemble(artifact_of(tiny, INT2), dtype=torch.bfloat16)
    twin = dense_twin(tiny.model, INT2)
    for parameter in twin.parameters():
        parameter.data = parameter.data.bfloat16()
    torch.testing.assert_close(logits(model), logits(twin), atol=0.0, rtol=0.0)


@pytest.mark.parametrize(("grid", "bits"), [(INT2, 2), (INT4, 4)], ids=["INT2", "INT4"])
def test_codes_take_exactly_their_bits_in_memory(tiny: LoadedModel, grid: Grid, bits: int) -> None:
    artifact = artifact_of(tiny, grid)
    model, _ = assembly.assemble(artifact)
    weights = sum(layer.shape[0] * layer.shape[1] for layer in plan_layers(tiny.model, 16))
    codes = sum(layer.codes.nbytes for _, layer in packed_layers(model))
    scales = sum(layer.scale.nbytes for _, layer in packed_layers(model))
    assert codes * 8 == bits * weights
    assert scales == weights // 16 * 2
    assert artifact.manifest["bits_per_weight"] == bits + 16 / 16
    assert artifact.manifest["quantized_weights"] == weights


def test_everything_that_is_not_quantized_comes_back_unchanged(tiny: LoadedModel) -> None:
    with torch.no_grad():
        tiny.model.model.norm.weight.copy_(torch.rand(64).half())
    artifact = artifact_of(tiny, INT2)
    assert artifact.tensors["model.norm.weight"].dtype == torch.float16
    assert artifact.tensors["model.embed_tokens.weight"].dtype == torch.float32
    assert "lm_head.weight" not in artifact.tensors, "tied weights are stored once"
    model, _ = assembly.assemble(artifact)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    kept = dict(tiny.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name])
        assert not parameter.requires_grad
    assert not model.training


def test_a_bfloat16_parameter_too_wide_for_float16_is_stored_as_bfloat16(
    tiny: LoadedModel,
) -> None:
    with torch.no_grad():
        tiny.model.model.norm.weight[0] = 1e30
        tiny.model.model.norm.weight.copy_(tiny.model.model.norm.weight.bfloat16())
    assert artifact_of(tiny, INT2).tensors["model.norm.weight"].dtype == torch.bfloat16


def test_the_manifest_says_what_the_artifact_is_and_where_it_comes_from(
    tiny: LoadedModel,
) -> None:
    manifest = artifact_of(tiny, INT2).manifest
    assert (manifest["precision"], manifest["format_version"]) == ("INT2", 1)
    assert manifest["base_model"]["files"] == tiny.info.files
    assert manifest["layers"]["model.layers.0.mlp.down_proj"] == {
        "bits": 2,
        "zero": 1.5,
        "shape": [64, 128],
        "groups": 8,
    }
    assert set(manifest["versions"]) == {"upq", "torch", "transformers"}
    assert manifest["commit"] == machine.commit()
    assert manifest["machine"] == machine.machine()


def test_generation_stops_where_the_original_does(tiny: LoadedModel) -> None:
    model, tokenizer = assembly.assemble(artifact_of(tiny, INT4))
    assert model.generation_config.eos_token_id == tiny.model.generation_config.eos_token_id
    assert tokenizer.chat_template == tiny.tokenizer.chat_template


@pytest.mark.parametrize("version", [0, 5, None, "2"])
def test_another_format_version_is_refused(tiny: LoadedModel, version: object) -> None:
    artifact = artifact_of(tiny, INT2)
    newer = dataclasses.replace(artifact, manifest={**artifact.manifest, "format_version": version})
    with pytest.raises(UserError, match=f"format {version}; this program reads 1 to 4") as caught:
        assembly.assemble(newer)
    assert caught.value.code == "artifact_version"


def test_the_size_of_an_artifact_is_that_of_its_tensors_and_files() -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(2)}
    assert Artifact("INT2", {}, tensors, {"f": b"12345"}).size_bytes == 3 + 8 + 5
