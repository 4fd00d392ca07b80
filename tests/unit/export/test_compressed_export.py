"""compressed-tensors folders hold the artifact's linears exactly, in codes of 4 bits around 8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.export_cases import (
    WEIGHTS,
    artifact_of,
    config_of,
    edit,
    logits,
    model_of,
    rotated,
)
from tests.support.families import family_folder
from upq.errors import UserError
from upq.export import export, format_named, opened
from upq.models import LoadedModel, load

KEY = "compressed-tensors"
GRIDS = [("signed", 4), ("signed", 2), ("odd", 2)]
LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(("kind", "bits"), GRIDS)
@pytest.mark.parametrize("group", [32, 0])
def test_scale_times_code_minus_8_is_the_weight(
    group: int, kind: str, bits: int, tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, kind, bits, group=group)
    tensors = load_file(export(model, KEY, tmp_path / "out").folder / WEIGHTS)
    words, scale = tensors[f"{LAYER}.weight_packed"], tensors[f"{LAYER}.weight_scale"]
    assert (words.dtype, words.shape) == (torch.int32, (64, 16))
    assert (scale.dtype, scale.shape) == (torch.float16, (64, 128 // (group or 128)))
    assert tensors[f"{LAYER}.weight_shape"].tolist() == [64, 128]
    columns = torch.arange(128)
    codes = words[:, columns // 8].long() >> 4 * (columns % 8) & 15
    weight = (codes - 8) * scale.float()[:, columns * scale.shape[1] // 128]
    assert torch.equal(weight, model.weight(LAYER))
    embedding = tensors["model.embed_tokens.weight"]
    assert torch.equal(embedding, model.weight("model.embed_tokens").half())


def test_the_config_names_groups_and_what_is_left_alone(tiny: LoadedModel, tmp_path: Path) -> None:
    config = config_of(export(model_of(tiny, "signed", 4), KEY, tmp_path / "out").folder)
    assert config["dtype"] == "float16"
    quantization = config["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    assert quantization["ignore"] == ["lm_head"]
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("group", 32)
    rows = export(model_of(tiny, "odd", 2, group=0), KEY, tmp_path / "rows").folder
    weights = config_of(rows)["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("channel", None)


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale"])
def test_a_changed_tensor_is_found(part: str, tiny: LoadedModel, tmp_path: Path) -> None:
    model = model_of(tiny, "signed", 4)
    folder = export(model, KEY, tmp_path / "out").folder
    edit(folder, lambda tensors: tensors[f"{LAYER}.{part}"].view(torch.int16)[3, 0].add_(1))
    with pytest.raises(UserError, match=f"{LAYER} is not what the artifact holds") as caught:
        format_named(KEY).check(model, folder, lambda _: None)
    assert caught.value.code == "export_differs"


def test_negative_scales_are_spoken_of(tiny: LoadedModel) -> None:
    model = model_of(tiny, "signed", 4)
    assert bool((model.layers[LAYER].scale < 0).any())
    assert "some scales are negative" in format_named(KEY).offer(model).exactness
    assert "negative" not in format_named(KEY).offer(model_of(tiny, "odd", 2)).exactness


def test_what_w4a16_cannot_hold_is_refused_in_a_sentence(tiny: LoadedModel, tmp_path: Path) -> None:
    artifacts = {
        "INT4 around 7.5; W4A16 has the zero 8": artifact_of(tiny, "odd", 4),
        "a zero or a minimum for each group": artifact_of(tiny, "integer_zero", 2),
        "has a zero or a minimum": artifact_of(tiny, "q2_k", 2),
        "is rotated while it runs": rotated(artifact_of(tiny, "odd", 2), tiny),
        "Groups have 16 inputs; ": artifact_of(tiny, "odd", 2, group=16),
    }
    for message, artifact in artifacts.items():
        model = opened(artifact, "tiny")
        with pytest.raises(UserError, match=message) as caught:
            format_named(KEY).offer(model)
        assert caught.value.code == "cannot_export"
        assert caught.value.hint
    mixture = load(str(family_folder(tmp_path / "mixtral", "mixtral")))
    with pytest.raises(UserError, match="one expert of many"):
        format_named(KEY).offer(model_of(mixture, "odd", 2))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("kind", "bits"), GRIDS)
@pytest.mark.parametrize("group", [32, 0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_transformers_computes_the_logits_of_the_decoded_weights(
    dtype: str, group: int, kind: str, bits: int, family: str, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    loaded = load(str(family_folder(tmp_path / family, family, tie_word_embeddings=True)))
    model = model_of(loaded, kind, bits, group=group)
    folders = [export(model, key, tmp_path / key).folder for key in (KEY, "safetensors")]
    found, dense = (AutoModelForCausalLM.from_pretrained(one, dtype=dtype) for one in folders)
    if dtype == "float32":  # the linears are exact there, where the 16-bit folder has rounded them
        for name in model.linears:
            dense.get_parameter(f"{name}.weight").data.copy_(model.weight(name))
    wanted = logits(dense)
    assert wanted.abs().max() > 0.1
    assert torch.equal(logits(found), wanted)
