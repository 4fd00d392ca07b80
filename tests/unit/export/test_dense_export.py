"""16-bit safetensors hold the decoded weights, each rounded once, and load in transformers as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kernels.reference import weight_of
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
from upq.artifact.assembly import assemble
from upq.errors import UserError
from upq.export import PackedModel, export, format_named, opened
from upq.models import LoadedModel, load

KEY = "safetensors"


def write(model: PackedModel, folder: Path) -> Path:
    return export(model, KEY, folder / "out").folder


def test_every_tensor_is_the_decoded_one_rounded_to_float16(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, "odd", 4)
    tensors = load_file(write(model, tmp_path) / WEIGHTS)
    assert tensors.keys() == {name for name, _ in tiny.model.named_parameters()}
    for name, tensor in tensors.items():
        layer = model.layers.get(name.removesuffix(".weight"))
        wanted = model.artifact.tensors[name] if layer is None else weight_of(layer)
        assert torch.equal(tensor, wanted.half()), name


def test_whoever_may_read_the_other_files_may_read_the_weights(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = write(model_of(tiny, "odd", 4), tmp_path)
    modes = {path.name: path.stat().st_mode for path in folder.iterdir() if path.is_file()}
    assert modes[WEIGHTS] == modes["config.json"]


def test_a_rotated_model_leaves_with_its_rotations_multiplied_out(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    artifact = rotated(artifact_of(tiny, "odd", 4), tiny)
    folder = write(opened(artifact, "tiny"), tmp_path)
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    packed, _ = assemble(artifact)
    assert (logits(dense) - logits(packed)).abs().max() < 0.01 * logits(packed).abs().max()


def test_biases_of_packed_layers_leave_with_them(tmp_path: Path) -> None:
    def give_biases(original: torch.nn.Module) -> None:
        for name, parameter in original.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)

    loaded = load(str(family_folder(tmp_path / "qwen2", "qwen2", give_biases)))
    artifact = artifact_of(loaded, "signed", 4)
    folder = write(opened(artifact, "tiny"), tmp_path)
    biases = {name: bias for name, bias in load_file(folder / WEIGHTS).items() if "bias" in name}
    assert len(biases) == 6, "of three projections in two blocks"
    dense, packed = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        assemble(artifact)[0],
    )
    assert (logits(dense) - logits(packed)).abs().max() < 0.01 * logits(packed).abs().max()


def test_the_folder_is_complete_and_names_no_place_of_this_machine(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = write(model_of(tiny, "signed", 2), tmp_path)
    config = config_of(folder)
    assert config["dtype"] == "float16"
    assert "quantization_config" not in config
    assert "_name_or_path" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.get_vocab() == tiny.tokenizer.get_vocab()


def test_a_changed_a_missing_and_a_foreign_tensor_are_found(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        f"{name} is not what": lambda tensors: tensors[name][3, 5].add_(0.25),
        f"{name} is missing": lambda tensors: tensors.pop(name),
        "foreign should not be there": lambda tensors: tensors.update(foreign=torch.zeros(2)),
    }
    model = model_of(tiny, "odd", 2)
    for index, (message, change) in enumerate(changes.items()):
        folder = write(model, tmp_path / str(index))
        edit(folder, change)
        with pytest.raises(UserError, match=message) as caught:
            format_named(KEY).check(model, folder, lambda _: None)
        assert caught.value.code == "export_differs"


def test_the_offer_is_within_a_percent_of_what_is_written(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    model = model_of(tiny, "odd", 4)
    offer = format_named(KEY).offer(model)
    made = export(model, KEY, tmp_path / "out")
    assert offer.bits_per_weight == 16
    assert abs(offer.size_bytes - made.size_bytes) < 0.01 * made.size_bytes + 4096, "and a header"


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    loaded = load(str(family_folder(tmp_path / "mixtral", "mixtral")))
    model = model_of(loaded, "odd", 4)
    with pytest.raises(UserError, match=r"experts\.0\..* is one expert of many") as caught:
        write(model, tmp_path)
    assert caught.value.code == "cannot_export"
    assert not (tmp_path / "out").exists()


def test_a_weight_beyond_float16_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    artifact.tensors["model.norm.weight"] = torch.full((64,), 1e6)
    with pytest.raises(
        UserError, match=r"model\.norm\.weight holds a number beyond float16, 1e\+06"
    ):
        write(opened(artifact, "tiny"), tmp_path)
    assert not (tmp_path / "out").exists()
