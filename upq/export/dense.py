"""Ordinary 16-bit safetensors, for every program that loads a transformers folder; no smaller than FP16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open

from upq.export.formats import Offer, Progress, Use, cannot_export, export_differs
from upq.export.model import PackedModel

DTYPE = torch.float16
BYTES = 2
#: The largest finite float16.
LARGEST = torch.finfo(DTYPE).max


class Dense:
    """upq.export.formats.Format: the decoded weights, rounded to float16."""

    key, title = "safetensors", "16-bit safetensors"
    runs_in = "whatever loads a transformers folder"

    def offer(self, model: PackedModel) -> Offer:
        """Twice the bytes of the parameters."""
        require_plain_names(model)
        packed = sum(rows * columns for rows, columns in (w.shape for w in model.layers.values()))
        plain = sum(tensor.numel() for tensor in model.plain.values())
        files = sum(map(len, model.artifact.files.values()))
        exactness = "the decoded weights, each rounded to float16"
        return Offer(BYTES * (packed + plain) + files, 8.0 * BYTES, exactness)

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """Shards of at most 5 GB, with the tokenizer and a config that names no quantization."""
        require_plain_names(model)
        names = list(tensor_names(model))
        tensors = {}
        for index, name in enumerate(names):
            tensors[name] = _rounded(model, name)
            progress((index + 1) / len(names))
        save_torch_state_dict(tensors, folder)
        write_files(model, folder, {"dtype": "float16"})

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every tensor is the decoded one in float16."""
        missing = set(tensor_names(model))
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name not in missing or not torch.equal(
                        file.get_tensor(name), _rounded(model, name)
                    ):
                        raise export_differs(f"{name} is not what the artifact holds.")
                    missing.remove(name)
                    progress(1 - len(missing) / len(model.artifact.tensors))
        if missing:
            raise export_differs(f"{sorted(missing)[0]} is missing.")
        return "read back: every tensor is the decoded one, rounded to float16"

    def uses(self, model: PackedModel) -> list[Use]:
        """Transformers, and what else reads its folders."""
        load = 'AutoModelForCausalLM.from_pretrained(".", dtype="float16")'
        code = f"from transformers import AutoModelForCausalLM\nmodel = {load}"
        return [Use("transformers", code), Use("vLLM", "vllm serve . --dtype float16")]


def tensor_names(model: PackedModel) -> Iterator[str]:
    """The names of all parameters as transformers has them; a tied head is not among them."""
    yield from (f"{name}.weight" for name in model.layers)
    yield from model.plain


def require_plain_names(model: PackedModel) -> None:
    """Raise UserError("cannot_export") for a model whose experts we took apart: no program knows their names."""
    if apart := [name for name in model.layers if ".experts." in name]:
        raise cannot_export(
            f"{apart[0]} is one expert of many, which transformers keeps in one tensor.",
            "Mixtures of experts cannot leave yet; chat with them here.",
        )


def write_files(model: PackedModel, folder: Path, changes: dict[str, object]) -> None:
    """Write the files of a transformers folder, config.json with changes to it."""
    for name, content in model.artifact.files.items():
        (folder / name).write_bytes(content)
    config = model.config | {"architectures": model.config.get("architectures")} | changes
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _rounded(model: PackedModel, name: str) -> torch.Tensor:
    module, _, leaf = name.rpartition(".")
    is_packed = leaf == "weight" and module in model.layers
    weight = model.weight(module) if is_packed else model.artifact.tensors[name].float()
    if float(weight.abs().max()) > LARGEST:
        raise cannot_export(f"{name} holds a weight beyond float16, {float(weight.abs().max()):g}.")
    return weight.to(DTYPE).contiguous()
