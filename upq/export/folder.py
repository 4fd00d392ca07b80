"""A folder as transformers has them: what formats share that write one and read it back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file

from upq.export.formats import cannot_export, export_differs
from upq.export.model import PackedModel

#: The largest finite float16.
LARGEST = torch.finfo(torch.float16).max


def require_plain_names(model: PackedModel) -> None:
    """Raise UserError("cannot_export") for a model whose experts we took apart: no program knows their names."""
    if apart := [name for name in model.layers if ".experts." in name]:
        raise cannot_export(
            f"{apart[0]} is one expert of many, which transformers keeps in one tensor.",
            "Mixtures of experts cannot leave yet; chat with them here.",
        )


def require_codes_alone(model: PackedModel, program: str) -> None:
    """Raise UserError("cannot_export") for what no program that reads codes in words of 32 bits can hold: experts that
    we took apart, and layers whose activations have to be transformed; and on a machine with another order of bytes.
    """
    if sys.byteorder != "little":
        raise cannot_export(
            f"This machine is big-endian; {program} files are made on a little-endian one."
        )
    require_plain_names(model)
    if rotated := [name for name, weight in model.layers.items() if weight.transform]:
        raise cannot_export(
            f"{rotated[0]} is rotated while it runs, which {program} cannot do.",
            "Quantize again with the method portable_upq, or take the packed or the 16-bit format.",
        )


def write_files(model: PackedModel, folder: Path, changes: dict[str, object]) -> None:
    """Write the files of a transformers folder, config.json with changes to it.

    Raises UserError("cannot_export") for a name that leads out of the folder.
    """
    for name, content in model.artifact.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise cannot_export(f"The tokenizer has a file with the unsafe name {name!r}.")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    config = model.config | changes
    for name in ("torch_dtype", "_name_or_path"):  # an old name, and a path of this machine
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def save_tensors(
    tensors: dict[str, torch.Tensor], folder: Path, framework: str = "pt", stem: str = "model"
) -> str:
    """Write tensors in files of at most 5 GB, with an index where they are several, and return the name of the one to
    begin with. framework: what the files say that they are for; stem: how their names begin.
    """
    pattern = stem + "{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].contiguous() for name in names}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode  # of all files here; safetensors lets nobody else read its own
        save_file(shard, path, metadata={"format": framework})
        path.chmod(mode)
    if not split.is_sharded:
        return f"{stem}.safetensors"
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    path = folder / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=1), encoding="utf-8")
    return path.name


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything in the safetensors files of a folder, one after the other."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                yield name, file.get_tensor(name)


def require_names(found: set[str], expected: set[str]) -> None:
    """Raise UserError("export_differs") unless a folder has the tensors that it should have, and no others."""
    for name in sorted(expected - found):
        raise export_differs(f"{name} is missing.")
    for name in sorted(found - expected):
        raise export_differs(f"{name} should not be there.")


def in_float16(name: str, values: torch.Tensor) -> torch.Tensor:
    """Values rounded to float16. Raises UserError("cannot_export") where one is beyond it."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > LARGEST:
        raise cannot_export(f"{name} holds a number beyond float16, {largest:g}.")
    return values.to(torch.float16).contiguous()
