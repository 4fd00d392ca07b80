"""Time, memory and sizes of a run before it starts, from the model's config alone.

Sizes are computed layer by layer. Time is arithmetic: the multiplications of every stage over the speed that
this machine reached in its last runs, or over a cautious default until there was one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upq.config import (
    QUANTIZED,
    BlockwiseConfig,
    Precision,
    PrecisionConfig,
    RunConfig,
)
from upq.context import SeriesNames
from upq.errors import UserError
from upq.files import RESOURCES
from upq.models import LOOKED_UP_GROUP, Shape
from upq.quantize.memory import gpu_bytes, gpu_needs, memory_bytes, shape_of
from upq.quantize.sizes import HALF, Layers, packed_bytes, shared_widths

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
TYPICAL_PROMPT_TOKENS = 45
TYPICAL_ANSWER_SHARE = 0.85
#: Multiplications for each weight and token: one forward, and two more for a backward pass behind it.
TRAINING = 3.0
#: Forward passes of a block beside its training: for its targets, its error before and after, and on to the next block.
STREAM_PASSES = 4
#: A stage's speed is not taken from fewer seconds than this.
MEASURABLE_SECONDS = 1
#: The forms of embedding and head: 8 bits, and 4 of an embedding that is looked up (upq.artifact.embeddings).
PER_ROW = PrecisionConfig(group_size=0)
LOOKED_UP = PrecisionConfig(grid="signed", group_size=LOOKED_UP_GROUP)
#: What a prompt of the model's own takes: header and text, and a fifth more for those that are dropped.
OWN_PROMPT_TOKENS = 110


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Times in seconds, sizes in bytes; skipped: layers left in FP16, with the reason.

    gpu_bytes: of the GPU's memory; None where the run computes on the CPU.
    """

    seconds_low: float
    seconds_high: float
    memory_bytes: int
    gpu_bytes: int | None
    fp16_bytes: int
    int4_bytes: int
    int2_bytes: int
    skipped: list[str]
    notes: list[str]


def estimate(config: RunConfig, rates: dict[str, float], gpu: int | None = None) -> Estimate:
    """Estimate a run. rates: multiplications per second by stage, from `measured_rates`; may be empty. gpu: the GPU's
    bytes, 0 for none; None: those of `upq.quantize.memory.gpu_bytes`.

    Raises the UserErrors of upq.models.loading for a model that cannot be quantized, so they show before Start.
    """
    shape, notes = shape_of(config), []
    gpu = gpu_bytes(config) if gpu is None else gpu
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
    if config.embedding_bits < 16:
        rest -= _saved_by_embeddings(config, shape)
        skipped += shape.skipped_embeddings
    return Estimate(
        seconds_low=seconds * LOW,
        seconds_high=seconds * HIGH,
        memory_bytes=memory_bytes(config, shape, gpu),
        gpu_bytes=max(gpu_needs(config, shape, gpu).values()) if gpu else None,
        fp16_bytes=fp16,
        int4_bytes=rest
        + _untied_bytes(config, shape, Precision.INT4)
        - _saved_bytes(shape.int4, Precision.INT4.bits, config.int4),
        int2_bytes=rest
        + _untied_bytes(config, shape, Precision.INT2)
        - _saved_by_int2(config, shape),
        skipped=skipped,
        notes=notes,
    )


def work(config: RunConfig, shape: Shape) -> dict[str, float]:
    """Multiplications of each stage. A forward pass costs one for each token and weight that it meets, a backward pass
    two.
    """
    data = config.data
    own = data.own_prompts if config.reads_data else 0
    answers = _answers(config) + own * data.answers_per_prompt
    sequence = min(
        TYPICAL_PROMPT_TOKENS + TYPICAL_ANSWER_SHARE * data.answer_tokens, data.sequence_tokens
    )
    held_out = data.held_out * (TYPICAL_PROMPT_TOKENS + config.measure.answer_tokens)
    everything = shape.active + shape.head
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
            TRAINING * everything * tokens + shape.active * unique
        )
    return {stage: amount for stage, amount in amounts.items() if amount}


def _measured_models(config: RunConfig) -> int:
    """FP16, what the run made of it, the same as it is served, and as many baselines."""
    return 1 + len(QUANTIZED) * (3 if config.measure.baselines else 2)


def _blockwise_work(config: PrecisionConfig, shape: Shape) -> float:
    """Multiplications of a block-wise stage: training, forward passes beside it, Hessians, LDLQ and its descent."""
    blockwise = config.blockwise
    epochs = blockwise.epochs if _trains(blockwise) else 0
    total = shape.active * blockwise.tokens * (TRAINING * epochs + STREAM_PASSES)
    if config.rounding == "ldlq":
        met = blockwise.tokens * shape.active / shape.quantized
        total += met * sum(width**2 for width in shared_widths(shape.int2))
        solved = sum(rows * columns**2 for rows, columns in shape.int2.values())
        total += (1 + config.descent_passes) * solved
    return total


def _trains(config: BlockwiseConfig) -> bool:
    rates = [value for name, value in vars(config).items() if name.endswith("_lr")]
    return any(rates)


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
    """Multiplications per second by stage, each from the newest finished quantization run that had the stage.

    Time in which a run stood aside or was interrupted is not counted. A run that no worker here held tells nothing.
    """
    rates: dict[str, float] = {}
    for run in runs:
        if run.kind != "quantize" or run.state != "done" or run.attempt < 1:
            continue
        config = RunConfig.from_values(run.config)
        try:
            shape = shape_of(config)
        except UserError:
            continue
        spent = {name: _worked_s(run, times) for name, times in run.stages.items()}
        found = {
            name: amount / spent[name]
            for name, amount in work(config, shape).items()
            if spent.get(name, 0) > MEASURABLE_SECONDS
        }
        rates = found | rates
    return rates


def _worked_s(run: Run, times: Mapping[str, Any]) -> float:
    """Seconds worked in a stage; 0 where they are not known, as of a run with pauses from an older version."""
    if not times["ended"]:
        return 0.0
    since = times["ended"] - times["started"] if run.attempt == 1 else 0.0
    return times.get("seconds", since)


def _saved_bytes(layers: Layers, bits: int, config: PrecisionConfig) -> int:
    """What packed layers take less than their weights in 16 bits."""
    weights = sum(rows * columns for rows, columns in layers.values())
    return weights * HALF - packed_bytes(layers, bits, config)


def _saved_by_embeddings(config: RunConfig, shape: Shape) -> int:
    """The same of embedding and head."""
    small = shape.looked_up if config.embedding_bits == 4 else None
    others = {name: size for name, size in shape.embeddings.items() if name != small}
    saved = _saved_bytes(others, 8, PER_ROW)
    return saved + _saved_bytes({small: shape.embeddings[small]}, 4, LOOKED_UP) if small else saved


def _saved_by_int2(config: RunConfig, shape: Shape) -> int:
    """The same of INT2, some of whose layers may keep INT4's form."""
    saved = _saved_bytes(shape.int2, Precision.INT2.bits, config.int2)
    weights = sum(rows * columns for rows, columns in shape.int2.values())
    target = config.int2.bits_target
    return min(saved, int(weights * (HALF - target / 8))) if target else saved


def _untied_bytes(config: RunConfig, shape: Shape, precision: Precision) -> int:
    """What an absorbed rotation adds where it parts the head from the embedding."""
    if not shape.tied or config.of(precision).basis is None:
        return 0
    if config.embedding_bits == 4 and shape.embeddings and shape.hidden % LOOKED_UP_GROUP == 0:
        return packed_bytes(shape.embeddings, 4, LOOKED_UP)
    if config.embedding_bits < 16 and shape.embeddings:
        return packed_bytes(shape.embeddings, 8, PER_ROW)
    return HALF * shape.head
