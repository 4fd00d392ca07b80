"""Time, memory and sizes of a run before it starts, from the model's config alone.

Sizes are computed layer by layer. Time is arithmetic: the multiplications of every stage over the speed that
this machine reached in its last runs, or over a cautious default until there was one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM

from upq.config import RunConfig
from upq.errors import UserError
from upq.model_files import BUILDING, Source, resolve, vet_config
from upq.sources import RESOURCES
from upq.store import Run
from upq.structure import plan_embeddings, plan_layers

#: Multiplications per second that each stage reaches, per CPU core, and on a GPU, until a run has shown better.
DEFAULT_RATE_CORE = {"data": 1.4e10, "int4": 4e10, "warm": 4e10, "int2": 4e10, "measure": 3e10}
DEFAULT_RATE_GPU = {"data": 5e12, "int4": 1e13, "warm": 1e13, "int2": 4e13, "measure": 1e13}
#: Seconds that a run takes whatever its size: process start, loading, packing.
FIXED_SECONDS = 20.0
#: The estimate is given as a range of this width around the arithmetic.
LOW, HIGH = 0.8, 1.3
TYPICAL_PROMPT_TOKENS = 45
TYPICAL_ANSWER_SHARE = 0.85


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Times in seconds, sizes in bytes; skipped: layers left in FP16, with the reason."""

    seconds_low: float
    seconds_high: float
    memory_bytes: int
    fp16_bytes: int
    int4_bytes: int
    int2_bytes: int
    skipped: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Shape:
    """A model as the estimate sees it: numbers of parameters, and the layers that would be packed."""

    parameters: int
    head: int
    int4: dict[str, tuple[int, int]]
    int2: dict[str, tuple[int, int]]
    embeddings: dict[str, tuple[int, int]]
    skipped: tuple[str, ...]
    skipped_embeddings: tuple[str, ...]

    @property
    def quantized(self) -> int:
        """Weights that are quantized."""
        return sum(rows * columns for rows, columns in self.int2.values())


def estimate(config: RunConfig, rates: dict[str, float]) -> Estimate:
    """Estimate a run. rates: multiplications per second by stage, from `measured_rates`; may be empty.

    Raises the UserErrors of upq.models for a model that cannot be quantized, so they show before Start.
    """
    shape = inspect(
        config.model.source, config.model.revision, config.int4.group_size, config.int2.group_size
    )
    notes = []
    gpu = torch.cuda.is_available() and config.device != "cpu"
    cores = config.threads or os.cpu_count() or 1
    defaults = (
        DEFAULT_RATE_GPU
        if gpu
        else {name: rate * cores for name, rate in DEFAULT_RATE_CORE.items()}
    )
    if not rates:
        notes.append("The time is a first guess; it becomes exact after one run on this machine.")
    seconds = FIXED_SECONDS + sum(
        amount / rates.get(stage, defaults[stage]) for stage, amount in work(config, shape).items()
    )
    if config.data.source != "builtin":
        notes.append(
            "The number of rows in your dataset is not known yet; the time assumes there are enough."
        )
    fp16, skipped = shape.parameters * 2, list(shape.skipped)
    rest = fp16
    if config.embedding_bits == 8:
        rest -= _saved_bytes(shape.embeddings, 8, 0)
        skipped += shape.skipped_embeddings
    return Estimate(
        seconds_low=seconds * LOW,
        seconds_high=seconds * HIGH,
        memory_bytes=_memory(config, shape),
        fp16_bytes=fp16,
        int4_bytes=rest - _saved_bytes(shape.int4, 4, config.int4.group_size),
        int2_bytes=rest - _saved_bytes(shape.int2, 2, config.int2.group_size),
        skipped=skipped,
        notes=notes,
    )


def work(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Multiplications of each stage. A forward pass costs one per weight and token, a backward pass two."""
    data, int2 = config.data, config.int2
    answers = _answers(config)
    sequence = min(
        TYPICAL_PROMPT_TOKENS + TYPICAL_ANSWER_SHARE * data.answer_tokens, data.sequence_tokens
    )
    held_out = data.held_out * (TYPICAL_PROMPT_TOKENS + config.measure.answer_tokens)
    everything = shape.quantized + shape.head
    amounts = {
        "data": everything * (answers * sequence + held_out),
        "measure": everything * held_out * (5 if config.measure.baselines else 3),
    }
    if config.method == "upq":
        for stage, blockwise in (("int4", config.int4.blockwise), ("warm", int2.warm_start)):
            amounts[stage] = shape.quantized * blockwise.tokens * (3.0 * blockwise.epochs + 4)
        unique = min(answers * sequence, int2.distill.tokens)
        amounts["int2"] = 3.0 * everything * int2.distill.tokens + shape.quantized * unique
    return amounts


def _answers(config: RunConfig) -> int:
    """Answers that the teacher has to write."""
    data = config.data
    if data.text_column or data.answer_column:
        return 0
    rows = data.max_rows
    if data.source == "builtin":
        lines = (RESOURCES / "prompts_train.jsonl").read_text(encoding="utf-8").count("\n")
        rows = min(rows, lines)
    return rows * data.answers_per_prompt


def measured_rates(runs: Iterable[Run]) -> dict[str, float]:
    """Multiplications per second by stage in the newest finished quantization run that trained, or nothing."""
    for run in runs:
        if run.kind != "quantize" or run.state != "done" or run.method != "upq" or run.attempt != 1:
            continue
        config = RunConfig.from_json(json.dumps(run.config))
        try:
            shape = inspect(
                config.model.source,
                config.model.revision,
                config.int4.group_size,
                config.int2.group_size,
            )
        except UserError:
            continue
        spent = {
            name: (times["ended"] or 0) - times["started"] for name, times in run.stages.items()
        }
        amounts = work(config, shape)
        return {
            name: amount / spent[name] for name, amount in amounts.items() if spent.get(name, 0) > 1
        }
    return {}


def inspect(source: str, revision: str | None, int4_group: int, int2_group: int) -> Shape:
    """Shape of a model from its config; reads no weights. Raises the UserErrors of resolve and vet_config."""
    place = resolve(source, revision)
    stamp = place.path.stat().st_mtime_ns if place.path else 0
    return _inspect(place, stamp, int4_group, int2_group)


@lru_cache(maxsize=32)
def _inspect(place: Source, _stamp: int, int4_group: int, int2_group: int) -> Shape:
    with BUILDING, init_empty_weights():
        model = AutoModelForCausalLM.from_config(_config(place), trust_remote_code=False)
    model.tie_weights()  # out here, because in there every assigned parameter becomes a new one
    planned = {"INT4": plan_layers(model, int4_group), "INT2": plan_layers(model, int2_group)}
    skipped = {
        f"{one.name}: {one.reason}" for plan in planned.values() for one in plan if not one.quantize
    }
    shapes = [{one.name: one.shape for one in plan if one.quantize} for plan in planned.values()]
    both = shapes[0].keys() & shapes[1].keys()
    embeddings = plan_embeddings(model)
    return Shape(
        parameters=sum(one.numel() for one in model.parameters()),
        head=model.get_output_embeddings().weight.numel(),
        int4={name: shapes[0][name] for name in both},
        int2={name: shapes[1][name] for name in both},
        embeddings={one.name: one.shape for one in embeddings if one.quantize},
        skipped=tuple(sorted(skipped)),
        skipped_embeddings=tuple(
            f"{one.name}: {one.reason}" for one in embeddings if not one.quantize
        ),
    )


def _config(place: Source) -> Any:
    if place.kind == "gguf" and place.path:
        return AutoConfig.from_pretrained(
            place.path.parent, gguf_file=place.path.name, trust_remote_code=False
        )
    folder = place.path or _hub_folder(place)
    vet_config(folder, place.name)
    return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _hub_folder(place: Source) -> Path:
    try:
        return Path(hf_hub_download(place.text, "config.json", revision=place.revision)).parent
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise UserError(
            "offline",
            f"The config of {place.text} could not be read: {str(error).splitlines()[0]}",
            "Check the id and the connection, or use a local folder or the bundled model.",
        ) from error


def _saved_bytes(layers: dict[str, tuple[int, int]], bits: int, group_size: int) -> int:
    """What packed layers take less than their weights in 16 bits."""
    weights = sum(rows * columns for rows, columns in layers.values())
    scales = sum(rows * (columns // (group_size or columns)) for rows, columns in layers.values())
    return weights * 2 - weights * bits // 8 - scales * 2


def _memory(config: RunConfig, shape: Shape) -> int:
    """The exact reference and the teacher; while distilling also weight, gradient and two moments in float32, the
    student's 16-bit weights and its activations; and torch itself.
    """
    held = shape.parameters * (4 + 2)
    if config.method != "upq":
        return held + shape.parameters * 2 + 700_000_000
    training = shape.quantized * (4 * 4 + 2 + 2 * 4) + shape.parameters * 2
    width = max(columns for _, columns in shape.int2.values())
    depth = max(1, len(shape.int2) // 7)
    activations = config.int2.distill.batch_tokens * width * depth * 24
    return held + training + activations + 700_000_000
