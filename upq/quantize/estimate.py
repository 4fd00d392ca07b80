"""Time, memory and sizes of a run before it starts, from the model's config alone.

Sizes are computed layer by layer. Time is arithmetic: the multiplications of every stage over the speed that
this machine reached in its last runs, or over a cautious default until there was one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from upq.config import (
    QUANTIZED,
    BlockwiseConfig,
    DistillConfig,
    Precision,
    PrecisionConfig,
    RunConfig,
)
from upq.context import SeriesNames
from upq.errors import UserError
from upq.files import RESOURCES
from upq.models import Shape, inspect

if TYPE_CHECKING:
    from upq.store import Run

#: Multiplications per second that each stage reaches, per CPU core, and on a GPU, until a run has shown better.
DEFAULT_RATE_CORE = {
    "data": 1.4e10,
    "int4": 4e10,
    "int4_distill": 4e10,
    "int2": 4e10,
    "int2_distill": 4e10,
    "measure": 3e10,
}
DEFAULT_RATE_GPU = {
    "data": 5e12,
    "int4": 1e13,
    "int4_distill": 4e13,
    "int2": 1e13,
    "int2_distill": 4e13,
    "measure": 1e13,
}
#: Share of the time that may rest on default rates before the estimate is called a first guess.
GUESSED_SHARE = 0.2
#: Seconds that a run takes whatever its size: process start, loading, packing.
FIXED_SECONDS = 20.0
#: The estimate is given as a range of this width around the arithmetic.
LOW, HIGH = 0.8, 1.3
#: Memory that does not depend on the model: the libraries, and freed blocks that the allocator keeps.
TORCH_BYTES = 1_200_000_000
TYPICAL_PROMPT_TOKENS = 45
TYPICAL_ANSWER_SHARE = 0.85
#: Multiplications for each weight and token: one forward, and two more for a backward pass behind it.
TRAINING = 3.0
#: Forward passes of a block beside its training: for its targets, its error before and after, and on to the next block.
STREAM_PASSES = 4
#: Bytes of a 16-bit number, and of a float32 one.
HALF, FLOAT = 2, 4
#: Entries of UniSVQ's lattice: A is 4 x 4, B has 4.
LATTICE_ENTRIES = 4 * 4 + 4
#: Optimizer bits -> bytes of a trained value's gradient and its two moments.
LEARNING_BYTES = {32: FLOAT + 2 * FLOAT, 8: HALF + 2}
#: Linear layers of a decoder block in the Llama family: query, key, value, output, gate, up and down.
LINEARS_PER_BLOCK = 7
#: Bytes that a block keeps for its backward pass, for each token and input of its widest layer: about six float32
#: numbers in a Llama block, four of them in the MLP and the rest in attention and norms, which are narrower.
BLOCK_BYTES = 24
#: The same where blocks are computed again: their input alone, a quarter as wide.
INPUT_BYTES = 1
#: A stage's speed is not taken from fewer seconds than this.
MEASURABLE_SECONDS = 1
#: What a prompt of the model's own takes: header and text, and a fifth more for those that are dropped.
OWN_PROMPT_TOKENS = 110


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


def estimate(config: RunConfig, rates: dict[str, float]) -> Estimate:
    """Estimate a run. rates: multiplications per second by stage, from `measured_rates`; may be empty.

    Raises the UserErrors of upq.models.loading for a model that cannot be quantized, so they show before Start.
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
    times = {
        stage: amount / rates.get(stage, defaults[stage])
        for stage, amount in work(config, shape).items()
    }
    for precision in QUANTIZED:
        stage, most = SeriesNames(precision.key).distill_stage, config.of(precision).distill.seconds
        if most and stage in times:
            times[stage] = min(times[stage], most)
    seconds = FIXED_SECONDS + sum(times.values())
    if sum(times[stage] for stage in times.keys() - rates.keys()) > GUESSED_SHARE * seconds:
        notes.append("The time is a first guess; it becomes exact after one run on this machine.")
    if config.data.source != "builtin":
        notes.append(
            "The number of rows in your dataset is not known yet; the time assumes there are enough."
        )
    fp16, skipped = shape.parameters * HALF, list(shape.skipped)
    rest = fp16
    if config.embedding_bits == 8:
        rest -= _saved_bytes(shape.embeddings, 8, PrecisionConfig(group_size=0))
        skipped += shape.skipped_embeddings
    return Estimate(
        seconds_low=seconds * LOW,
        seconds_high=seconds * HIGH,
        memory_bytes=_memory(config, shape),
        fp16_bytes=fp16,
        int4_bytes=rest - _saved_bytes(shape.int4, Precision.INT4.bits, config.int4),
        int2_bytes=rest - _saved_bytes(shape.int2, Precision.INT2.bits, config.int2),
        skipped=skipped,
        notes=notes,
    )


def work(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Multiplications of each stage. A forward pass costs one per weight and token, a backward pass two."""
    data = config.data
    own = data.own_prompts if config.reads_data else 0
    answers = _answers(config) + own * data.answers_per_prompt
    sequence = min(
        TYPICAL_PROMPT_TOKENS + TYPICAL_ANSWER_SHARE * data.answer_tokens, data.sequence_tokens
    )
    held_out = data.held_out * (TYPICAL_PROMPT_TOKENS + config.measure.answer_tokens)
    everything = shape.quantized + shape.head
    amounts = {
        "data": everything * (answers * sequence + own * OWN_PROMPT_TOKENS + held_out),
        "measure": everything * held_out * _measured_models(config),
    }
    for precision in QUANTIZED:
        settings = config.of(precision)
        amounts[precision.key] = _blockwise_work(settings, shape)
        tokens = settings.distill.tokens
        unique = min(answers * sequence, tokens) if settings.distill.loss == "jsd" else 0
        amounts[SeriesNames(precision.key).distill_stage] = (
            TRAINING * everything * tokens + shape.quantized * unique
        )
    return {stage: amount for stage, amount in amounts.items() if amount}


def _measured_models(config: RunConfig) -> int:
    """FP16, what the run made of it, and as many baselines."""
    return 1 + len(QUANTIZED) * (2 if config.measure.baselines else 1)


def _blockwise_work(config: PrecisionConfig, shape: Shape) -> float:
    """Multiplications of a block-wise stage: training, forward passes beside it, Hessians, LDLQ and its descent."""
    blockwise = config.blockwise
    epochs = blockwise.epochs if _trains(blockwise) else 0
    total = shape.quantized * blockwise.tokens * (TRAINING * epochs + STREAM_PASSES)
    if config.rounding == "ldlq":
        total += blockwise.tokens * sum(width**2 for width in _shared_widths(shape.int2))
        solved = sum(rows * columns**2 for rows, columns in shape.int2.values())
        total += (1 + config.descent_passes) * solved
    return total


def _trains(config: BlockwiseConfig) -> bool:
    rates = [value for name, value in vars(config).items() if name.endswith("_lr")]
    return any(rates)


def _shared_widths(layers: dict[str, tuple[int, int]]) -> list[int]:
    """Inputs of each tensor that layers read; layers of one module and width are taken to read the same one."""
    readers = {(name.rpartition(".")[0], columns) for name, (_, columns) in layers.items()}
    return [columns for _, columns in readers]


def _answers(config: RunConfig) -> int:
    """Answers that the teacher has to write to prompts of the source."""
    data = config.data
    if data.text_column or data.answer_column or not config.reads_data:
        return 0
    rows = data.max_rows
    if data.source == "builtin":
        lines = (RESOURCES / "prompts_train.jsonl").read_text(encoding="utf-8").count("\n")
        rows = min(rows, lines)
    return rows * data.answers_per_prompt


def measured_rates(runs: Iterable[Run]) -> dict[str, float]:
    """Multiplications per second by stage, each from the newest finished quantization run that had the stage."""
    rates: dict[str, float] = {}
    for run in runs:
        if run.kind != "quantize" or run.state != "done" or run.attempt != 1:
            continue
        config = RunConfig.from_values(run.config)
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
        found = {
            name: amount / spent[name]
            for name, amount in work(config, shape).items()
            if spent.get(name, 0) > MEASURABLE_SECONDS
        }
        rates = found | rates
    return rates


def _saved_bytes(layers: dict[str, tuple[int, int]], bits: int, config: PrecisionConfig) -> int:
    """What packed layers take less than their weights in 16 bits."""
    return sum(
        rows * columns * HALF - _packed_bytes(rows, columns, bits, config)
        for rows, columns in layers.values()
    )


def _packed_bytes(rows: int, columns: int, bits: int, config: PrecisionConfig) -> int:
    """One packed layer: codes, float16 scales, zeros in a byte, float16 vectors of a rotation, float32 lattice."""
    groups = rows * (columns // (config.group_size or columns))
    size = rows * columns * bits // 8 + groups * (
        HALF + 1 if config.grid == "integer_zero" else HALF
    )
    size += HALF * {"none": 0, "input": columns, "both": columns + rows}[config.rotation]
    return size + (FLOAT * LATTICE_ENTRIES if config.codebook == "lattice" else 0)


def _memory(config: RunConfig, shape: Shape) -> int:
    """The exact reference, the teacher, a model that is measured or trained, what distillation adds; and torch. Latent
    weights are files that are mapped, which give way where memory is short.
    """
    held = shape.parameters * (shape.stored_bytes + HALF + HALF)
    trained = max(_distill_memory(config.of(precision).distill, shape) for precision in QUANTIZED)
    return held + trained + TORCH_BYTES


def _distill_memory(config: DistillConfig, shape: Shape) -> int:
    """The student's float32 weights, its 16-bit ones, activations; gradients and moments where weights learn."""
    if not config.tokens:
        return 0
    learning = LEARNING_BYTES[config.optimizer_bits] if config.weight_lr else 0
    width = max(columns for _, columns in shape.int2.values())
    depth = max(1, len(shape.int2) // LINEARS_PER_BLOCK)
    kept = BLOCK_BYTES * depth
    if config.checkpointing:
        kept = BLOCK_BYTES + INPUT_BYTES * depth
    activations = config.batch_tokens * width * kept
    return shape.quantized * (FLOAT + HALF + learning) + activations
