"""Memory of a run before it starts, from the model's config alone: the machine's and the GPU's.

A GPU holds the 16-bit model, or of one that takes more than half of it only embedding and head, and what a stage adds:
a block and its student, or the whole student. The bytes of each are those of docs/gpu.md; what an H200 measured is
within 10 % of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from upq.config import (
    QUANTIZED,
    DistillConfig,
    Precision,
    PrecisionConfig,
    RunConfig,
)
from upq.context import SeriesNames
from upq.layers import GRIDS
from upq.models import CHUNK_ROWS, LARGEST_SHARE, Shape, inspect
from upq.quantize.sizes import FLOAT, HALF, packed_bytes, shared_widths
from upq.training.losses import GPU_LOGITS

#: Bytes of a float64 number.
DOUBLE = 8
#: Memory of the machine that does not depend on the model: the libraries, and freed blocks that the allocator keeps.
TORCH_BYTES = 1_200_000_000
#: Memory of a GPU that no tensor has: CUDA's context, compiled kernels, gaps between tensors.
CUDA_BYTES = 1_000_000_000
#: Optimizer bits -> bytes of a trained value's gradient, and of its two moments (upq.training.adamw8bit).
GRADIENT_BYTES = {32: FLOAT, 8: HALF}
MOMENT_BYTES = {32: 2 * FLOAT, 8: 2.03}
#: Bytes that a block keeps for its backward pass, for each token and input of its widest layer, or of the experts that
#: the token meets: on a CPU about six float32 numbers in a Llama block, four of them in the MLP and the rest in
#: attention and norms, which are narrower; on a GPU eight of 16 bits, with those that the backward pass adds.
BLOCK_BYTES, GPU_BLOCK_BYTES = 24, 16
#: On a CPU the same where blocks are computed again: their input alone, a quarter as wide.
INPUT_BYTES = 1
#: Float32 copies of a chunk of logits that the divergence holds at a time.
LOGIT_COPIES = 8
#: Bytes of an entry of a Hessian while it is solved: as it was summed up, rotated and damped in float32; its factor,
#: the inverse, and the inverse's factor in float64.
SOLVED_BYTES = 3 * FLOAT + 3 * DOUBLE
#: Bytes of a block's weight before it is trained: FP16, FP16 in the student, what it starts from and its latent.
STARTING_BYTES = 2 * HALF + 2 * FLOAT


def shape_of(config: RunConfig) -> Shape:
    """The shape of a config's model. Raises the UserErrors of upq.models.inspect."""
    groups = config.int4.dividing_group, config.int2.dividing_group
    return inspect(config.model.source, config.model.revision, *groups)


def gpu_bytes(config: RunConfig) -> int:
    """Memory of the GPU that a run of this config would compute on here; 0 where it would compute on the CPU."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(0).total_memory


def gpu_needs(config: RunConfig, shape: Shape, gpu: int) -> dict[str, int]:
    """Bytes of GPU memory that each stage needs at its peak, on a GPU of `gpu` bytes."""
    rest = HALF * (shape.parameters - shape.quantized)
    is_lent = HALF * shape.parameters > LARGEST_SHARE * gpu
    model = rest if is_lent else HALF * shape.parameters
    rewritten = _rewritten_bytes(config, shape, gpu - model)
    int4_bytes = packed_bytes(shape.int4, Precision.INT4.bits, config.int4)
    needs = {"data": float(model), "measure": float(model + rewritten + rest + int4_bytes)}
    for precision in QUANTIZED:
        settings = config.of(precision)
        block = block_bytes(settings, shape) + (HALF * _block_weights(shape) if is_lent else 0)
        needs[precision.key] = model + rewritten + block
        if (distill := settings.distill).tokens:
            teacher = int4_bytes if distill.teacher == "int4" and distill.loss == "jsd" else 0
            stays = distill.loss == "jsd" and distill.teacher == "live"
            student = student_bytes(settings, shape)
            peak = (model if stays else rest + teacher) + student
            if distill.loss == "jsd" and distill.teacher == "cached":  # before the student trains
                peak = max(peak, model + _held_bytes(settings, shape))
            needs[SeriesNames(precision.key).distill_stage] = peak + rewritten
    return {stage: int(CUDA_BYTES + size) for stage, size in needs.items()}


def rewritten_parameters(config: RunConfig, shape: Shape) -> int:
    """Values of the model in the basis of an absorbed rotation, which stands beside the given one; 0 without."""
    if not any(config.of(precision).basis for precision in QUANTIZED):
        return 0
    return shape.parameters + (shape.head if shape.tied else 0)


def _rewritten_bytes(config: RunConfig, shape: Shape, free: int) -> int:
    """Bytes of the rewritten model on a GPU that has so many bytes free; a large one leaves its blocks on the CPU."""
    whole = HALF * rewritten_parameters(config, shape)
    return whole if whole <= LARGEST_SHARE * free else whole - HALF * shape.quantized


def block_bytes(config: PrecisionConfig, shape: Shape) -> float:
    """Bytes on a GPU of a block-wise stage: a block's student, its training or its start, and a batch."""
    blockwise, weights = config.blockwise, _block_weights(shape)
    rates = [value for name, value in vars(blockwise).items() if name.endswith("_lr")]
    values = FLOAT + GRADIENT_BYTES[32] + MOMENT_BYTES[32] if blockwise.weight_lr else FLOAT + HALF
    batch = GPU_BLOCK_BYTES * blockwise.batch_tokens * shape.busiest
    training = values * weights + batch if blockwise.epochs and any(rates) else 0
    start = STARTING_BYTES * weights
    if config.rounding == "ldlq":
        others = (
            sum(width**2 for width in shared_widths(shape.int2)) / shape.depth - shape.widest**2
        )
        start += SOLVED_BYTES * shape.widest**2 + FLOAT * others
    return max(training, start)


def student_bytes(config: PrecisionConfig, shape: Shape) -> float:
    """Bytes on a GPU of a distillation, without the teacher and what the student shares with it.

    The peak is at the head, where all blocks wait for their backward pass, or in the first block, where all gradients
    are there.
    """
    distill, weights = config.distill, shape.quantized
    groups = sum(count for _, count in _groups(config, shape))
    learning = groups + (weights if distill.weight_lr else 0)
    gradients = GRADIENT_BYTES[distill.optimizer_bits] * learning
    held = _held_bytes(config, shape) + MOMENT_BYTES[distill.optimizer_bits] * learning
    one_block = GPU_BLOCK_BYTES * shape.busiest * distill.batch_tokens + HALF * _block_weights(
        shape
    )
    if _keeps_multiples(distill):
        one_block += FLOAT * _block_weights(shape)
    waiting = shape.depth * one_block
    if distill.checkpointing:
        waiting = shape.depth * HALF * shape.hidden * distill.batch_tokens
    logits = LOGIT_COPIES * FLOAT * max(GPU_LOGITS, CHUNK_ROWS * shape.vocabulary)
    at_head = waiting + logits + (gradients if distill.accumulation > 1 else 0)
    return held + max(at_head, gradients + one_block)


def _keeps_multiples(config: DistillConfig) -> bool:
    """Whether weights learn as multiples of steps, so that those of a block stand beside their multiples."""
    return bool(config.weight_lr) and config.weight_unit == "group"


def _held_bytes(config: PrecisionConfig, shape: Shape) -> float:
    """Bytes of a student before it trains: weights, or one code for each, scales, and zeros."""
    values = FLOAT if config.distill.weight_lr else 1
    scales = sum(
        groups * (2 * FLOAT if GRIDS[grid].has_zeros else FLOAT)
        for grid, groups in _groups(config, shape)
    )
    return values * shape.quantized + scales


def _groups(config: PrecisionConfig, shape: Shape) -> Iterator[tuple[str, int]]:
    """(grid, number of groups) of each layer."""
    for rows, columns in shape.int2.values():
        grid, group_size = config.form(columns)
        yield grid, rows * (columns // (group_size or columns))


def _block_weights(shape: Shape) -> int:
    """Quantized weights of a block; blocks are taken to be alike."""
    return shape.quantized // shape.depth


def memory_bytes(config: RunConfig, shape: Shape, gpu: int) -> int:
    """Memory of the machine: the exact reference, the teacher, both in the basis of an absorbed rotation, a model that
    is measured or trained, and torch. On a CPU (gpu 0) what distillation adds. Latent weights are files that are
    mapped, which give way where memory is short.
    """
    held = shape.parameters * (shape.stored_bytes + HALF + HALF)
    held += rewritten_parameters(config, shape) * (shape.stored_bytes + HALF)
    trained = max(_distill_memory(config.of(precision).distill, shape) for precision in QUANTIZED)
    return held + (0 if gpu else trained) + TORCH_BYTES


def _distill_memory(config: DistillConfig, shape: Shape) -> int:
    """The student's float32 weights, its 16-bit ones, activations; gradients and moments where weights learn."""
    if not config.tokens:
        return 0
    bits = config.optimizer_bits
    learning = GRADIENT_BYTES[bits] + MOMENT_BYTES[bits] if config.weight_lr else 0
    kept = BLOCK_BYTES * shape.depth
    if config.checkpointing:
        kept = BLOCK_BYTES + INPUT_BYTES * shape.depth
    activations = config.batch_tokens * shape.busiest * kept
    if _keeps_multiples(config):
        learning += FLOAT
    return int(shape.quantized * (FLOAT + HALF + learning)) + activations
