"""A folder for MLX: codes as they are packed, a scale and an offset for every 32, 64 or 128 inputs.

MLX computes weight = scale * code + bias in the type of scale and bias, and rounds no activations. Its codes stand in
words of 32 bits, lowest bits first, so that ours are theirs byte for byte.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from kernels.packing import PackedWeight
from kernels.reference import group_scales
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

#: The groups of MLX, the largest first: fewer scales, the same weights.
GROUPS = (128, 64, 32)
#: Of the words that hold codes.
WORD_BITS = 32
#: Rounding to float16 moves a number by at most this share of it.
HALF_STEP = 2.0**-11


@dataclass
class Mlx:
    """upq.export.formats.Format in one of two types: scales and offsets in float16, or in float32, which is exact."""

    key: str
    title: str
    dtype: torch.dtype
    runs_in: str = "mlx-lm and LM Studio, on Macs"

    def offer(self, model: PackedModel) -> Offer:
        """Codes as they are, and two numbers for each group."""
        _require(model)
        layers = sum(self._size(name, weight) for name, weight in model.layers.items())
        plain = sum(tensor.numel() for tensor in model.plain.values()) * self.dtype.itemsize
        files = sum(map(len, model.artifact.files.values()))
        linears = model.linears
        bits = 8 * sum(self._size(name, weight) for name, weight in linears.items())
        weights = sum(rows * columns for rows, columns in (w.shape for w in linears.values()))
        return Offer(layers + plain + files, bits / weights, self._exactness(model))

    def write(self, model: PackedModel, folder: Path, progress: Progress) -> None:
        """Shards of at most 5 GB, the tokenizer, and a config that gives bits and group of every module."""
        _require(model)
        tensors = {}
        for index, (name, weight) in enumerate(model.layers.items()):
            tensors |= self._layer(name, weight)
            progress((index + 1) / len(model.layers))
        tensors |= {name: self._typed(name, tensor) for name, tensor in model.plain.items()}
        save_tensors(tensors, folder, "mlx")
        quantization = _quantization(model)
        changes = {"quantization": quantization, "quantization_config": quantization}
        write_files(model, folder, {**changes, "dtype": str(self.dtype).removeprefix("torch.")})

    def check(self, model: PackedModel, folder: Path, progress: Progress) -> str:
        """Every weight, decoded as MLX decodes it but in float64, is the artifact's up to the rounding of offsets."""
        found = dict(read_tensors(folder))
        parts = {
            f"{name}.{part}" for name in model.layers for part in ("weight", "scales", "biases")
        }
        require_names(set(found), parts | set(model.plain))
        for name, tensor in model.plain.items():
            if not torch.equal(found[name], self._typed(name, tensor)):
                raise export_differs(f"{name} is not what the artifact holds.")
        largest = 0.0
        for index, name in enumerate(model.layers):
            words, scale, bias = (
                found[f"{name}.{part}"] for part in ("weight", "scales", "biases")
            )
            moved = _moved(
                model, name, (words.numpy(), scale.double().numpy(), bias.double().numpy())
            )
            if self.dtype == torch.float32 and moved:
                raise export_differs(f"{name} is not what the artifact holds.")
            largest = max(largest, moved)
            progress((index + 1) / len(model.layers))
        if not largest:
            return "read back: every weight is exactly the artifact's"
        return f"read back: offsets in float16 move weights by at most {largest:.4f} of a step"

    def uses(self, model: PackedModel) -> list[Use]:
        """mlx-lm in the folder; LM Studio takes a copy of it."""
        place = shlex.quote(f"upq/{model.name}")
        return [
            Use("mlx-lm", "mlx_lm.chat --model ."),
            Use(
                "LM Studio",
                f"mkdir -p ~/.lmstudio/models/{place} && cp -r . ~/.lmstudio/models/{place}",
            ),
        ]

    def _typed(self, name: str, values: torch.Tensor) -> torch.Tensor:
        return values.float() if self.dtype == torch.float32 else in_float16(name, values.float())

    def _size(self, name: str, weight: PackedWeight) -> int:
        rows, columns = weight.shape
        return (
            weight.codes.nbytes + 2 * rows * columns // _group(name, weight) * self.dtype.itemsize
        )

    def _layer(self, name: str, weight: PackedWeight) -> dict[str, torch.Tensor]:
        """The three tensors of a layer; a group of ours that is larger than MLX has is repeated."""
        repeats = weight.shape[1] // weight.scale.shape[1] // _group(name, weight)
        scale, offset = (part.repeat_interleave(repeats, 1) for part in group_scales(weight))
        return {
            f"{name}.weight": weight.codes.view(torch.uint32),
            f"{name}.scales": self._typed(name, scale),
            f"{name}.biases": self._typed(name, -offset),
        }

    def _exactness(self, model: PackedModel) -> str:
        if self.dtype == torch.float32:
            return "every weight exactly; runs in float32"
        if all(_has_exact_offsets(weight) for weight in model.layers.values()):
            return "every weight exactly; MLX computes in float16"
        return "codes and scales exactly, offsets rounded to float16; MLX computes in float16"


def _require(model: PackedModel) -> None:
    """Raise UserError("cannot_export") for what MLX cannot hold."""
    require_codes_alone(model, "MLX")
    for name, weight in model.layers.items():
        _group(name, weight)


def _group(name: str, weight: PackedWeight) -> int:
    """Inputs of a group of MLX for this layer. Raises UserError("cannot_export")."""
    if weight.steps is not None:
        raise cannot_export(
            f"{name} has a scale and a minimum for every 16 inputs; MLX has them for 32 at least.",
            "Quantize with grid=signed for MLX.",
        )
    ours = weight.shape[1] // weight.scale.shape[1]
    for group in GROUPS:
        if ours % group == 0:
            return group
    raise cannot_export(
        f"{name} has groups of {ours} inputs; MLX has groups of 32, 64 and 128.",
        "Quantize with group_size 32, 64 or 128, and if it is the embedding with embedding_bits=16.",
    )


def _has_exact_offsets(weight: PackedWeight) -> bool:
    """Whether every offset is a float16 number, as it is where zero is a power of two."""
    offset = group_scales(weight)[1]
    return torch.equal(offset.half().float(), offset)


def _quantization(model: PackedModel) -> dict[str, object]:
    """What config.json says: bits and group of most modules, then every module for which that does not hold."""
    settings = {name: (_group(name, weight), weight.bits) for name, weight in model.layers.items()}
    usual = Counter(settings.values()).most_common(1)[0][0]
    modules: dict[str, object] = {
        name: {"group_size": group, "bits": bits}
        for name, (group, bits) in settings.items()
        if (group, bits) != usual
    }
    matrices = [name for name, tensor in model.plain.items() if tensor.ndim > 1]
    modules |= {name.removesuffix(".weight"): False for name in matrices}
    return {"group_size": usual[0], "bits": usual[1], **modules}


def _moved(model: PackedModel, name: str, parts: tuple[numpy.ndarray, ...]) -> float:
    """By how many of its steps the weight of a layer that was read back differs most from the artifact's.

    parts: words, scales and offsets. Raises UserError("export_differs") where rounding offsets does not explain it.
    """
    words, scale, bias = parts
    bits = model.layers[name].bits
    shifts = numpy.arange(0, WORD_BITS, bits, dtype=numpy.uint32)
    codes = (words[:, :, None] >> shifts & numpy.uint32(2**bits - 1)).reshape(*scale.shape, -1)
    weight = scale[:, :, None] * codes + bias[:, :, None]
    wanted = model.weight(name).double().numpy().reshape(weight.shape)
    moved = numpy.abs(weight - wanted).max(-1)
    if (moved > HALF_STEP * numpy.abs(bias)).any():
        raise export_differs(f"{name} is not what the artifact holds.")
    return float((moved / numpy.where(scale, numpy.abs(scale), 1)).max())
