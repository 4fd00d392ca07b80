"""No damaged artifact reaches a kernel: each kind of damage is refused in a sentence that names the place."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.reference import dequantize
from kernels.transform import PARTS
from tests.unit.artifact.test_assembly import artifact_of, transformed_artifact
from upq.artifact import Artifact, assembly
from upq.artifact.parts import OPTIONAL_PARTS
from upq.config import RunConfig
from upq.errors import UserError
from upq.layers import INT4, grid_of, packed_layers
from upq.models import LoadedModel, load, plan_layers

LAYER = "model.layers.0.mlp.down_proj"  # (64, 128): 64 bytes of codes and 8 groups a row
EMBED = "model.embed_tokens"  # (262, 64), tied to the head


@pytest.fixture(scope="module")
def made(tiny_model_dir: Path) -> Artifact:
    """An artifact with INT4 layers and 8-bit embeddings; leave it as it is."""
    return artifact_of(load(str(tiny_model_dir)), INT4, embedding_bits=8)


@pytest.fixture
def sound(made: Artifact) -> Artifact:
    """The same with a manifest of its own."""
    return dataclasses.replace(made, manifest=copy.deepcopy(made.manifest))


@pytest.fixture(scope="module")
def made_with_transforms(tiny_model_dir: Path) -> Artifact:
    """An artifact of INT2 layers with zeros and every part of a transform; leave it as it is."""
    return transformed_artifact(load(str(tiny_model_dir)))


@pytest.fixture
def transformed(made_with_transforms: Artifact) -> Artifact:
    """The same with a manifest of its own."""
    manifest = copy.deepcopy(made_with_transforms.manifest)
    return dataclasses.replace(made_with_transforms, manifest=manifest)


def refusal(artifact: Artifact) -> str:
    with pytest.raises(UserError) as caught:
        assembly.assemble(artifact)
    assert caught.value.code == "artifact_damaged"
    assert caught.value.hint
    return caught.value.message


def test_the_undamaged_artifacts_are_accepted(sound: Artifact, transformed: Artifact) -> None:
    assembly.assemble(sound)
    assembly.assemble(transformed)


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A copy with one element replaced."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[-1] = value
        return changed

    return change


CHANGES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "a row too few": (f"{LAYER}.codes", lambda one: one[1:], "shape (63, 64); expected (64, 64)"),
    "a byte too few": (f"{LAYER}.codes", lambda one: one[:, 1:], "(64, 63); expected (64, 64)"),
    "flat codes": (f"{LAYER}.codes", torch.Tensor.flatten, "shape (4096,)"),
    "no codes": (f"{LAYER}.codes", lambda one: one[:0], "shape (0, 64)"),
    "signed codes": (f"{LAYER}.codes", lambda one: one.view(torch.int8), "is torch.int8"),
    "wide codes": (f"{LAYER}.codes", lambda one: one.int(), "is torch.int32"),
    "float codes": (f"{LAYER}.codes", lambda one: one.float(), "is torch.float32"),
    "a group too few": (f"{LAYER}.scale", lambda one: one[:, 1:], "(64, 7); expected (64, 8)"),
    "a scale too few": (f"{LAYER}.scale", lambda one: one[1:], "(63, 8); expected (64, 8)"),
    "wide scales": (f"{LAYER}.scale", lambda one: one.float(), "is torch.float32"),
    "integer scales": (f"{LAYER}.scale", lambda one: one.view(torch.int16), "is torch.int16"),
    "a scale of NaN": (f"{LAYER}.scale", filled(float("nan")), "NaN or infinite"),
    "an infinite scale": (f"{LAYER}.scale", filled(float("inf")), "NaN or infinite"),
    "a negative scale": (f"{LAYER}.scale", filled(-0.5), "negative"),
    "a smaller vocabulary": (f"{EMBED}.codes", lambda one: one[:9], "(9, 64); expected (262, 64)"),
    "a narrow embedding": (f"{EMBED}.codes", lambda one: one[:, :32], "(262, 32)"),
    "embedding of NaN": (f"{EMBED}.scale", filled(float("nan")), "NaN or infinite"),
    "a short norm": ("model.norm.weight", lambda one: one[:8], "(8,); expected (64,)"),
    "an integer norm": ("model.norm.weight", lambda one: one.int(), "expected a float type"),
    "a norm of NaN": ("model.norm.weight", lambda one: one * float("nan"), "NaN or infinite"),
}


@pytest.mark.parametrize("damage", CHANGES)
def test_a_tensor_that_does_not_fit_is_refused_by_name(sound: Artifact, damage: str) -> None:
    name, change, words = CHANGES[damage]
    message = refusal(
        dataclasses.replace(sound, tensors={**sound.tensors, name: change(sound.tensors[name])})
    )
    assert message.startswith(f"{name} ")
    assert words in message


NAN, INFINITE = float("nan"), float("inf")
TRANSFORM_CHANGES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "a row of zeros too few": ("zero", lambda one: one[1:], "(63, 2); expected (64, 2)"),
    "a group of zeros too few": ("zero", lambda one: one[:, 1:], "(64, 1); expected (64, 2)"),
    "signed zeros": ("zero", lambda one: one.view(torch.int8), "is torch.int8"),
    "float zeros": ("zero", lambda one: one.half(), "is torch.float16"),
    "a zero that is no code": ("zero", filled(4), "holds more than 2 bits"),
    "inputs too few": ("scale_in", lambda one: one[1:], "(127,); expected (128,)"),
    "inputs as a matrix": ("scale_in", lambda one: one[None], "(1, 128); expected (128,)"),
    "wide inputs": ("scale_in", lambda one: one.float(), "is torch.float32"),
    "inputs of NaN": ("scale_in", filled(NAN), "NaN or infinite"),
    "outputs too many": ("scale_out", lambda one: one.repeat(2), "(128,); expected (64,)"),
    "integer outputs": ("scale_out", lambda one: one.view(torch.int16), "is torch.int16"),
    "infinite outputs": ("scale_out", filled(INFINITE), "NaN or infinite"),
    "a narrow lattice": ("affine", lambda one: one[:, :3], "(4, 3); expected (4, 4)"),
    "a lattice of halves": ("affine", lambda one: one.half(), "is torch.float16"),
    "a lattice of NaN": ("affine", filled(NAN), "NaN or infinite"),
    "a short shift": ("shift", lambda one: one[:3], "(3,); expected (4,)"),
    "an infinite shift": ("shift", filled(-INFINITE), "NaN or infinite"),
}


@pytest.mark.parametrize("damage", TRANSFORM_CHANGES)
def test_a_part_of_a_transform_that_does_not_fit_is_refused_by_name(
    transformed: Artifact, damage: str
) -> None:
    part, change, words = TRANSFORM_CHANGES[damage]
    name = f"{LAYER}.{part}"
    tensors = {**transformed.tensors, name: change(transformed.tensors[name])}
    message = refusal(dataclasses.replace(transformed, tensors=tensors))
    assert message.startswith(f"{name} ")
    assert words in message


@pytest.mark.parametrize("part", ["zero", "scale_in", "scale_out", "affine", "shift"])
def test_a_part_and_the_manifest_agree_on_whether_it_is_there(
    transformed: Artifact, part: str
) -> None:
    name, listed = f"{LAYER}.{part}", transformed.manifest["layers"][LAYER]["parts"]
    rest = {key: tensor for key, tensor in transformed.tensors.items() if key != name}
    assert refusal(dataclasses.replace(transformed, tensors=rest)) == (
        f"The tensor {name} is missing."
    )
    listed.remove(part)
    expected = f"describes no {name}." if part != "zero" else f"{LAYER} has the zero None"
    assert expected in refusal(transformed)


@pytest.mark.parametrize("side", ["hadamard_in", "hadamard_out"])
@pytest.mark.parametrize("size", [0, -64, 3, 96, 256, 8192, 2**70, 64.0, True, "64", None, [64]])
def test_a_hadamard_is_a_power_of_two_that_divides_the_width(
    transformed: Artifact, side: str, size: Any
) -> None:
    transformed.manifest["layers"][LAYER][side] = size
    assert f"{LAYER} has {side} {size!r}" in refusal(transformed)


@pytest.mark.parametrize("parts", ["zero", ["codes"], [["zero"]], [None], {"zero": 1}, None, 1])
def test_parts_of_another_form_are_refused(transformed: Artifact, parts: Any) -> None:
    transformed.manifest["layers"][LAYER]["parts"] = parts
    assert f"{LAYER} has the parts" in refusal(transformed)


@pytest.mark.parametrize(
    ("entry", "tensor"),
    [
        ({"hadamard_in": 64}, None),
        ({"parts": ["scale_in"]}, ("scale_in", torch.ones(64, dtype=torch.float16))),
        ({"parts": ["zero"], "zero": None}, ("zero", torch.ones(262, 1, dtype=torch.uint8))),
    ],
)
def test_an_embedding_has_neither_zeros_nor_a_transform(
    sound: Artifact, entry: dict[str, Any], tensor: tuple[str, torch.Tensor] | None
) -> None:
    sound.manifest["layers"][EMBED] |= entry
    more = {f"{EMBED}.{tensor[0]}": tensor[1]} if tensor else {}
    damaged = dataclasses.replace(sound, tensors={**sound.tensors, **more})
    assert "which an embedding cannot have" in refusal(damaged)


@pytest.mark.parametrize(
    "name", [f"{LAYER}.codes", f"{LAYER}.scale", f"{EMBED}.codes", "model.norm.weight"]
)
def test_a_missing_tensor_is_refused_by_name(sound: Artifact, name: str) -> None:
    rest = {key: tensor for key, tensor in sound.tensors.items() if key != name}
    assert refusal(dataclasses.replace(sound, tensors=rest)) == f"The tensor {name} is missing."


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.codes", f"{LAYER}.zero", "x"])
def test_a_tensor_that_the_config_does_not_know_is_refused(sound: Artifact, name: str) -> None:
    more = {**sound.tensors, name: torch.zeros(1)}
    assert f"describes no {name}." in refusal(dataclasses.replace(sound, tensors=more))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("bits", 3, "codes of 3 bits"),
        ("bits", 0, "codes of 0 bits"),
        ("bits", -4, "codes of -4 bits"),
        ("bits", 16, "codes of 16 bits"),
        ("bits", 4.0, "codes of 4.0 bits"),
        ("bits", "4", "codes of '4' bits"),
        ("bits", None, "codes of None bits"),
        ("bits", 2, "zero 7.5"),
        ("zero", 8, "zero 8"),
        ("zero", None, "zero None"),
        ("zero", float("nan"), "zero nan"),
        ("groups", 0, "0 groups for 128 inputs"),
        ("groups", -8, "-8 groups"),
        ("groups", 7, "7 groups for 128 inputs"),
        ("groups", 256, "256 groups for 128 inputs"),
        ("groups", 8.0, "8.0 groups"),
        ("groups", 4, "expected (64, 4)"),
        ("shape", [64, 64], "not of the config's shape (64, 128)"),
        ("shape", None, "not of the config's shape"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    sound: Artifact, key: str, value: Any, words: str
) -> None:
    sound.manifest["layers"][LAYER][key] = value
    message = refusal(sound)
    assert LAYER in message
    assert words in message


@pytest.mark.parametrize("bits", [2, 16])
def test_an_embedding_has_4_or_8_bits_and_no_other_number(sound: Artifact, bits: int) -> None:
    sound.manifest["layers"][EMBED] |= {"bits": bits, "zero": (2**bits - 1) / 2}
    assert f"{EMBED} has codes of {bits} bits" in refusal(sound)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj", "lm_head", "model.layers.0", "", "model.embed_tokens.x"]
)
def test_a_layer_that_the_config_does_not_describe_is_refused(sound: Artifact, name: str) -> None:
    sound.manifest["layers"][name] = dict(sound.manifest["layers"][LAYER])
    assert refusal(sound) == f"The config describes no layer {name}."


def test_a_norm_cannot_be_a_packed_layer(sound: Artifact) -> None:
    sound.manifest["layers"]["model.norm"] = dict(sound.manifest["layers"][LAYER])
    assert "which its LlamaRMSNorm cannot have" in refusal(sound)


@pytest.mark.parametrize("layers", [None, [], "all", {LAYER: None}, {LAYER: [4]}])
def test_a_manifest_of_another_form_is_refused(sound: Artifact, layers: Any) -> None:
    sound.manifest["layers"] = layers
    assert refusal(sound).startswith("The manifest ")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 128},
        {"intermediate_size": 64},
        {"vocab_size": 300},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_attention_heads": 8, "head_dim": 16},
        {"tie_word_embeddings": False},
        {"intermediate_size": 0},
        {"num_attention_heads": 0, "head_dim": None},
        {"hidden_size": "wide"},
        {"model_type": "no-such-model"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_another_config_than_the_tensors_have_is_refused(
    sound: Artifact, changes: dict[str, Any]
) -> None:
    values = json.loads(sound.files["config.json"]) | changes
    files = {**sound.files, "config.json": json.dumps(values).encode()}
    refusal(dataclasses.replace(sound, files=files))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_json_object_is_refused(
    sound: Artifact, name: str, content: bytes | None
) -> None:
    files = {key: data for key, data in sound.files.items() if key != name}
    files |= {} if content is None else {name: content}
    assert name in refusal(dataclasses.replace(sound, files=files))


def test_the_format_has_a_type_for_every_part_of_a_transform() -> None:
    assert OPTIONAL_PARTS.keys() == {"zero", "minimum", "steps", *PARTS}


@pytest.fixture
def two_levels(tiny: LoadedModel) -> Artifact:
    """An artifact of INT2 layers with two levels of scales."""
    grid = grid_of("q2_k", 2)
    packed = {
        layer.name: grid.pack(weight, *grid.fit(weight, 16))
        for layer in plan_layers(tiny.model, 16)
        for weight in [tiny.model.get_parameter(f"{layer.name}.weight").detach()]
    }
    return assembly.build("INT2", packed, tiny, RunConfig())


def test_two_levels_of_scales_come_back_as_they_were_stored(
    tiny: LoadedModel, two_levels: Artifact
) -> None:
    assert two_levels.manifest["format_version"] == 4
    assert two_levels.manifest["layers"][LAYER]["parts"] == ["minimum", "steps"]
    model, _ = assembly.assemble(two_levels)
    for name, layer in packed_layers(model):
        tensors = {f"{name}.{part}": tensor for part, tensor in layer.packed.tensors.items()}
        for stored, tensor in tensors.items():
            assert torch.equal(tensor, two_levels.tensors[stored])
        tiny.model.get_submodule(name).weight.data = dequantize(layer.packed)
    ids = torch.arange(1, 9)[None]
    found, expected = (one(input_ids=ids).logits for one in (model, tiny.model))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("steps", lambda steps: steps[:, 1:], "expected (64, 8)"),
        ("steps", lambda steps: steps.view(torch.int8), "is torch.int8"),
        ("minimum", lambda minimum: minimum.float(), "is torch.float32"),
        ("minimum", lambda minimum: minimum * torch.inf, "holds NaN or infinite values"),
        ("scale", lambda scale: -scale, "holds negative values"),
    ],
)
def test_damaged_levels_of_scales_are_refused(
    two_levels: Artifact, part: str, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    name = f"{LAYER}.{part}"
    changed = {**two_levels.tensors, name: change(two_levels.tensors[name])}
    assert words in refusal(dataclasses.replace(two_levels, tensors=changed))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"parts": ["steps"]}, "has the parts ['steps'] and no others"),
        ({"parts": ["minimum", "steps", "zero"]}, "and no others"),
        ({"zero": 1.5}, "zero 1.5"),
        ({"groups": 2}, "2 blocks; expected 1"),
    ],
)
def test_a_manifest_of_half_a_second_level_is_refused(
    two_levels: Artifact, entry: dict[str, Any], words: str
) -> None:
    two_levels.manifest["layers"][LAYER] |= entry
    assert words in refusal(two_levels)
