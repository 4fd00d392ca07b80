"""Packed folders load in transformers, where upq.hf is imported, as the artifact itself is put together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.support.export_cases import (
    artifact_of,
    config_of,
    edit,
    logits,
    rotated,
)
from tests.support.families import family_folder
from upq.artifact import Artifact
from upq.artifact.assembly import assemble
from upq.config import PrecisionConfig
from upq.errors import UserError
from upq.export import export, format_named, opened
from upq.files import sha256_file
from upq.hf import HOW_TO_LOAD, MODEL_TYPE, REAL_TYPE
from upq.layers import INT8, Grid, PackedEmbedding, packed_layers
from upq.models import LoadedModel, load
from upq.quantize.absorb import absorbed

KEY = "packed"
WEIGHTS = "packed.safetensors"
GRIDS = [("odd", 4), ("odd", 2), ("signed", 4), ("signed", 2), ("integer_zero", 2), ("q2_k", 2)]
DTYPES = ["float32", "bfloat16", "float16"]


def packed_folder(artifact: Artifact, folder: Path) -> Path:
    return export(opened(artifact, "tiny"), KEY, folder / "out").folder


def pair(artifact: Artifact, folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    """(the model that transformers loads, the model that we put together)."""
    found = AutoModelForCausalLM.from_pretrained(packed_folder(artifact, folder), dtype=dtype)
    return found, assemble(artifact, dtype=getattr(torch, dtype))[0]


@pytest.mark.parametrize(
    ("kind", "bits", "dtype"),
    [*((*grid, "float32") for grid in GRIDS), ("odd", 2, "bfloat16"), ("signed", 4, "float16")],
)
def test_logits_are_those_of_the_artifact(
    kind: str, bits: int, dtype: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    found, wanted = pair(artifact_of(tiny, kind, bits), tmp_path, dtype)
    assert torch.equal(logits(found), logits(wanted))
    assert logits(found).dtype == getattr(torch, dtype)
    layers = dict(packed_layers(found))
    assert layers.keys() == dict(packed_layers(wanted)).keys()
    assert all(layer.packed.codes.dtype == torch.uint8 for layer in layers.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["odd", "q2_k"])
def test_rotations_come_along(kind: str, dtype: str, tiny: LoadedModel, tmp_path: Path) -> None:
    found, wanted = pair(rotated(artifact_of(tiny, kind, 2), tiny), tmp_path, dtype)
    assert found.model.layers[0].mlp.up_proj.blocks == (16, 8)
    assert torch.equal(logits(found), logits(wanted))


def test_absorbed_rotations_come_along(tiny: LoadedModel, tmp_path: Path) -> None:
    plain = replace(tiny, model=absorbed(tiny.model, PrecisionConfig(rotation="absorbed"), 0))
    found, wanted = pair(artifact_of(plain, "signed", 4), tmp_path)
    assert found.lm_head.codes is not found.model.embed_tokens.codes
    assert torch.equal(logits(found), logits(wanted))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("family", "embedding"),
    [
        ("llama", None),
        ("llama", Grid(8)),
        ("llama", INT8),
        ("qwen2", INT8),
        ("gemma3_text", INT8),
        ("phi", INT8),
        ("gpt_neox", INT8),
    ],
    ids=str,
)
def test_embeddings_heads_and_biases_come_along(
    family: str, embedding: Grid | None, tied: bool, tmp_path: Path
) -> None:
    def give_biases(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)

    folder = family_folder(tmp_path / family, family, give_biases, tie_word_embeddings=tied)
    artifact = artifact_of(load(str(folder)), "signed", 4, embedding=embedding)
    found, wanted = pair(artifact, tmp_path)
    assert torch.equal(logits(found), logits(wanted))
    is_packed = isinstance(wanted.get_input_embeddings(), PackedEmbedding)
    assert isinstance(found.get_input_embeddings(), PackedEmbedding) == is_packed
    if is_packed and tied:
        assert found.get_output_embeddings().codes is found.get_input_embeddings().codes


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_mixture_of_experts_comes_along(family: str, tmp_path: Path) -> None:
    artifact = artifact_of(load(str(family_folder(tmp_path / family, family))), "odd", 4)
    found, wanted = pair(artifact, tmp_path)
    assert torch.equal(logits(found), logits(wanted))


def test_loading_says_nothing_is_missing(tiny: LoadedModel, tmp_path: Path) -> None:
    folder = packed_folder(artifact_of(tiny, "odd", 2), tmp_path)
    loading: Any = AutoModelForCausalLM
    _, found = loading.from_pretrained(folder, output_loading_info=True)
    assert {name: list(value) for name, value in found.items() if value} == {}


def test_it_writes_text_and_knows_its_tokenizer(tiny: LoadedModel, tmp_path: Path) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    found, wanted = pair(artifact, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    ids = tokenizer("Hello", return_tensors="pt")
    answers = [one.generate(**ids, max_new_tokens=8, do_sample=False) for one in (found, wanted)]
    assert torch.equal(*answers)
    assert answers[0].shape[1] > ids["input_ids"].shape[1]


def test_saving_again_is_refused_in_a_sentence(tiny: LoadedModel, tmp_path: Path) -> None:
    found, _ = pair(artifact_of(tiny, "odd", 4), tmp_path)
    with pytest.raises(UserError, match="copy the folder that it was loaded from"):
        found.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


#: A class and what it is given -> what the error says where upq.hf is not imported.
STRANGERS = {
    "AutoModelForCausalLM.from_pretrained(folder)": f"model type `{MODEL_TYPE}`",
    "LlamaForCausalLM.from_pretrained(folder)": HOW_TO_LOAD,
    "LlamaForCausalLM.from_pretrained(folder, dtype='float32')": HOW_TO_LOAD,
    "LlamaModel.from_pretrained(folder)": HOW_TO_LOAD,
    "LlamaForCausalLM.from_pretrained(folder, config=LlamaConfig())": "Error no file named model.safetensors",
}


def test_without_our_module_no_class_takes_random_weights(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = packed_folder(artifact_of(tiny, "odd", 4), tmp_path)
    code = (
        "import json, sys\nfrom transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel\n"
        "folder, said = sys.argv[1], []\n"
        "for call in sys.argv[2:]:\n"
        "    try: said.append(str(eval(call)))\n"
        "    except (ValueError, OSError) as error: said.append(f'Refused: {error}')\n"
        "print(json.dumps(said))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder), *STRANGERS],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(result.stdout.splitlines()[-1])
    for call, words, found in zip(STRANGERS, STRANGERS.values(), said, strict=True):
        assert found.startswith("Refused: "), f"{call} made {found[:200]}"
        assert words in found


def test_with_our_module_a_class_of_one_family_says_which_class_to_take(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = packed_folder(artifact_of(tiny, "odd", 4), tmp_path)
    with pytest.raises(ValueError, match=re.escape(HOW_TO_LOAD)):
        LlamaForCausalLM.from_pretrained(folder)
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(found, LlamaForCausalLM)


def test_several_files_come_along(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "upq.export.folder.split_torch_state_dict_into_shards",
        partial(split_torch_state_dict_into_shards, max_shard_size=20_000),
    )
    artifact = artifact_of(tiny, "odd", 4)
    found, wanted = pair(artifact, tmp_path)
    assert len(list((tmp_path / "out").glob("packed-*-of-*.safetensors"))) > 2
    assert torch.equal(logits(found), logits(wanted))


def test_the_file_of_provenance_names_no_place(tiny: LoadedModel, tmp_path: Path) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    artifact.manifest["base_model"]["source"] = "/somewhere/private"
    folder = packed_folder(artifact, tmp_path)
    told = json.loads((folder / "upq.json").read_text("utf-8"))
    assert told["precision"] == "INT4"
    assert told["base_model"]["name"] == artifact.manifest["base_model"]["name"]
    texts = [path.read_text("utf-8") for path in folder.glob("*.json")]
    assert not any("private" in text for text in texts)


def changed_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = config_of(folder)
        change(config["quantization_config"])
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def signed_again(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change tensors, and the sha256 in the config with them, as somebody would who wants to be loaded."""

    def damage(folder: Path) -> None:
        edit(folder, change, WEIGHTS)
        digest = {WEIGHTS: sha256_file(folder / WEIGHTS)}
        changed_config(lambda values: values.update(sha256=digest))(folder)

    return damage


NAME = "model.layers.1.mlp.up_proj"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda folder: edit(folder, lambda t: t[f"{NAME}.codes"][3, 5].add_(1), WEIGHTS), "sha256"),
    "cut": (lambda folder: (folder / WEIGHTS).write_bytes(b"12345678"), "sha256"),
    "not safetensors": (
        lambda folder: (
            (folder / WEIGHTS).write_bytes(b"12345678"),
            changed_config(lambda values: values.update(sha256={WEIGHTS: sha256_file(folder / WEIGHTS)}))(folder),
        ),
        "packed.safetensors cannot be read",
    ),
    "missing": (signed_again(lambda t: t.pop(f"{NAME}.codes")), f"{NAME}.codes is missing"),
    "foreign": (signed_again(lambda t: t.update(more=torch.zeros(1))), "describes no more"),
    "shape": (
        signed_again(lambda t: t.update({f"{NAME}.codes": torch.zeros(3, 3, dtype=torch.uint8)})),
        f"{NAME}.codes has the shape",
    ),
    "type": (
        signed_again(lambda t: t.update({f"{NAME}.scale": t[f"{NAME}.scale"].double()})),
        f"{NAME}.scale is torch.float64",
    ),
    "not finite": (signed_again(lambda t: t[f"{NAME}.scale"].fill_(torch.nan)), "holds NaN"),
    "version": (changed_config(lambda values: values.update(format_version=99)), "has format 99"),
    "no version": (changed_config(lambda values: values.pop("format_version")), "has format 0"),
    "no layers": (changed_config(lambda values: values.pop("layers")), "lists no layers"),
    "layers a list": (changed_config(lambda values: values.update(layers=[1])), "lists no layers"),
    "bits": (changed_config(lambda values: values["layers"][NAME].update(bits=3)), "codes of 3 bits"),
    "no sha256": (changed_config(lambda values: values.pop("sha256")), "no files of weights with"),
    "no type": (changed_config(lambda values: values.pop(REAL_TYPE)), "unknown type None"),
    "type of itself": (
        changed_config(lambda values: values.update({REAL_TYPE: MODEL_TYPE})), "unknown type"
    ),
    "no file": (changed_config(lambda values: values.pop("weights")), "names None as the file"),
    "file elsewhere": (
        changed_config(lambda values: values.update(weights="../packed.safetensors")), "as the file"
    ),
    "type no text": (changed_config(lambda values: values.update({REAL_TYPE: [1]})), "unknown type"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused_in_a_sentence(
    damage: str, tiny: LoadedModel, tmp_path: Path
) -> None:
    folder = packed_folder(artifact_of(tiny, "odd", 4), tmp_path)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    assert caught.value.code in ("artifact_damaged", "artifact_version")


def test_a_changed_tensor_is_found_when_it_is_read_back(tiny: LoadedModel, tmp_path: Path) -> None:
    artifact = artifact_of(tiny, "odd", 4)
    folder = packed_folder(artifact, tmp_path)
    edit(folder, lambda tensors: tensors[f"{NAME}.codes"][3, 5].add_(1), WEIGHTS)
    with pytest.raises(UserError, match=rf"{NAME}\.codes is not what") as caught:
        format_named(KEY).check(opened(artifact, "tiny"), folder, lambda _: None)
    assert caught.value.code == "export_differs"
