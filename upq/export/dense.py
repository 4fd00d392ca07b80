"""Ordinary 16-bit safetensors, for every program that loads a transformers folder; no smaller than FP16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from upq.export.folder import (
    in_float16,
    read_tensors,
    require_names,
    require_plain_names,
    save_tensors,
    write_files,
)
from upq.export.formats import Offer, Progress, Use, export_differs
from upq.export.model import PackedModel

#: Of a float16 number.
BYTES = 2


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
        save_tensors(tensors, folder)
        write_files(model, folder, {"dtype": "float16"})

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every tensor is the decoded one in float16."""
        expected, found = set(tensor_names(model)), set[str]()
        for name, tensor in read_tensors(folder):
            if name in expected and not torch.equal(tensor, _rounded(model, name)):
                raise export_differs(f"{name} is not what the artifact holds.")
            found.add(name)
            progress(min(1.0, len(found) / len(expected)))
        require_names(found, expected)
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


def _rounded(model: PackedModel, name: str) -> torch.Tensor:
    module, _, leaf = name.rpartition(".")
    is_packed = leaf == "weight" and module in model.layers
    return in_float16(
        name, model.weight(module) if is_packed else model.artifact.tensors[name].float()
    )
