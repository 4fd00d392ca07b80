"""compressed-tensors, W4A16 as its pack-quantized format has it: for transformers, vLLM and SGLang.

A weight is scale * (code - 8), one float16 scale for each group, codes of 4 bits in words of 32, lowest bits first.
INT4 on the signed grid is that already. INT2 fits into the 4 bits: (code - 1.5) * scale is ((2 code + 5) - 8) *
scale / 2, and (code - 2) * scale is ((code + 6) - 8) * scale, both exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from kernels.packing import PackedWeight, pack, unpack
from upq.artifact import assembly
from upq.export.folder import (
    in_float16,
    read_tensors,
    require_codes_alone,
    require_names,
    save_tensors,
    write_files,
)
from upq.export.formats import Offer, Progress, Use, cannot_export, export_differs
from upq.export.model import PackedModel

#: Of the codes that are written, and of the words that hold them.
BITS, WORD_BITS = 4, 32
#: The code that stands for 0.
ZERO = 8
#: Groups that the kernels of vLLM and SGLang know, beside whole rows.
GROUPS = (32, 64, 128)
#: The version of the package whose files these are like.
VERSION = "0.20.0"
#: Of a float16 number.
BYTES = 2


class CompressedTensors:
    """upq.export.formats.Format: linears in 4 bits, everything else in float16."""

    key, title = "compressed-tensors", "compressed-tensors W4A16"
    runs_in = "transformers, vLLM, SGLang"

    def offer(self, model: PackedModel) -> Offer:
        """4 bits a weight and a scale for each group; embedding and head in 16 bits."""
        _require(model)
        shapes = {name: weight.shape for name, weight in model.layers.items()}
        linears = sum(
            rows * columns for name, (rows, columns) in shapes.items() if name in model.linears
        )
        others = sum(rows * columns for rows, columns in shapes.values()) - linears
        scales = sum(weight.scale.numel() for weight in model.linears.values())
        packed = linears * BITS // 8 + scales * BYTES
        plain = BYTES * (others + sum(tensor.numel() for tensor in model.plain.values()))
        files = sum(map(len, model.artifact.files.values()))
        return Offer(packed + plain + files, 8 * packed / linears, _exactness(model))

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """Shards of at most 5 GB, the tokenizer, and a config that says how linears are compressed."""
        _require(model)
        tensors = {}
        for index, (name, weight) in enumerate(model.linears.items()):
            tensors |= _layer(name, weight)
            progress((index + 1) / len(model.linears))
        tensors |= dict(_dense(model))
        save_tensors(tensors, folder)
        changes = {"dtype": "float16", "quantization_config": _quantization(model)}
        write_files(model, folder, changes)

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every linear, decoded by the formula in float64, is the artifact's; the rest is rounded once."""
        found, dense = dict(read_tensors(folder)), dict(_dense(model))
        parts = ("weight_packed", "weight_scale", "weight_shape")
        packed = {f"{name}.{part}" for name in model.linears for part in parts}
        require_names(set(found), packed | dense.keys())
        for index, name in enumerate(model.linears):
            decoded = _decoded(*(found[f"{name}.{part}"].numpy() for part in parts))
            if not numpy.array_equal(decoded, model.weight(name).double().numpy()):
                raise export_differs(f"{name} is not what the artifact holds.")
            progress((index + 1) / len(model.linears))
        for name, tensor in dense.items():
            if not torch.equal(found[name], tensor):
                raise export_differs(f"{name} is not what the artifact holds.")
        return "read back: every weight of the linears is exactly the artifact's, the rest is rounded to float16"

    def uses(self, model: PackedModel) -> list[Use]:
        """All three in float16: bfloat16 would round the scales."""
        load = 'AutoModelForCausalLM.from_pretrained(".", dtype="float16")'
        code = f"# pip install compressed-tensors\nfrom transformers import AutoModelForCausalLM\nmodel = {load}"
        return [
            Use("transformers", code),
            Use("vLLM", "vllm serve . --dtype float16"),
            Use("SGLang", "python -m sglang.launch_server --model-path . --dtype float16"),
        ]


def _require(model: PackedModel) -> None:
    """Raise UserError("cannot_export") for what the format cannot hold."""
    require_codes_alone(model, "compressed-tensors")
    for name, weight in model.linears.items():
        if weight.steps is not None or weight.zeros is not None:
            raise cannot_export(
                f"{name} has a zero or a minimum for each group; W4A16 has the zero {ZERO} everywhere.",
                "Quantize with grid=signed.",
            )
        if weight.bits == BITS and weight.zero != ZERO:
            raise cannot_export(
                f"{name} is INT4 around {weight.zero:g}; W4A16 has the zero {ZERO}.",
                "Quantize with int4.grid=signed, or take the INT2 model.",
            )
    _group_size(model)


def _group_size(model: PackedModel) -> int | None:
    """Inputs of a group, the same in all linears; None where every row is one. Raises UserError("cannot_export")."""
    linears = model.linears.values()
    if all(weight.scale.shape[1] == 1 for weight in linears):
        return None
    sizes = {weight.shape[1] // weight.scale.shape[1] for weight in linears}
    if len(sizes) == 1 and sizes <= {*GROUPS}:
        return sizes.pop()
    raise cannot_export(
        f"Groups have {', '.join(map(str, sorted(sizes)))} inputs; vLLM and SGLang take 32, 64, 128 or whole rows.",
        "Quantize with group_size 32, 64, 128 or 0.",
    )


def _exactness(model: PackedModel) -> str:
    line = "every weight of the linears exactly; embedding and head rounded to float16"
    if any(bool((weight.scale < 0).any()) for weight in model.linears.values()):
        line += "; some scales are negative, which transformers computes and vLLM and SGLang were not tried with"
    return line


def _layer(name: str, weight: PackedWeight) -> dict[str, torch.Tensor]:
    """The three tensors of a linear."""
    codes, scale = unpack(weight.codes, weight.bits), weight.scale.half()
    if weight.bits == 2:
        is_odd = weight.zero == 1.5
        codes = 2 * codes + 5 if is_odd else codes + 6
        scale = scale / 2 if is_odd else scale
    rows, columns = weight.shape
    words = nn.functional.pad(pack(codes, BITS), (0, -columns * BITS // 8 % (WORD_BITS // 8)))
    return {
        f"{name}.weight_packed": words.view(torch.int32),
        f"{name}.weight_scale": scale,
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


def _dense(model: PackedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that is not a linear of few bits, in float16."""
    for name in model.layers.keys() - model.linears.keys():
        yield f"{name}.weight", in_float16(name, model.weight(name))
    for name, tensor in model.plain.items():
        yield name, in_float16(name, tensor.float())


def _decoded(words: numpy.ndarray, scale: numpy.ndarray, shape: numpy.ndarray) -> numpy.ndarray:
    """The weight (out, in) float64 that the three tensors of a linear stand for."""
    rows, columns = shape
    shifts = numpy.arange(0, WORD_BITS, BITS, dtype=numpy.uint32)
    codes = words.view(numpy.uint32)[:, :, None] >> shifts & numpy.uint32(2**BITS - 1)
    levels = codes.reshape(rows, -1)[:, :columns].astype(numpy.float64) - ZERO
    return (levels.reshape(*scale.shape, -1) * scale.astype(numpy.float64)[:, :, None]).reshape(
        rows, -1
    )


def _quantization(model: PackedModel) -> dict[str, Any]:
    """quantization_config as compressed-tensors writes it."""
    group_size = _group_size(model)
    weights = {
        "num_bits": BITS,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    modules = assembly.empty_model(model.config, torch.float16).named_modules()
    linears = [name for name, module in modules if isinstance(module, nn.Linear)]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": [name for name in linears if name not in model.linears],
        "version": VERSION,
    }
