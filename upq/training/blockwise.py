"""Engine 1: block-wise reconstruction, one decoder block at a time (UPQ section 3.1; EfficientQAT's Block-AP).

Two streams of hidden states run through the model side by side. The FP16 stream gives every block its target; the
quantized stream, made by the blocks that are already quantized, gives it its input. Within a block everything that
has a learning rate learns together to reproduce the target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from kernels.packing import PackedWeight
from kernels.reference import weight_of
from upq.config import BlockwiseConfig, PrecisionConfig, derived_seed
from upq.context import RunContext, SeriesNames
from upq.data import Batch
from upq.errors import UserError
from upq.layers import (
    FakeQuantLinear,
    Forms,
    Latent,
    fake_quant_layers,
    set_parameters,
    swap_linears,
)
from upq.models import decoder_blocks, on_device
from upq.training.initialise import (
    FEWEST_TOKENS,
    MEASURED_BATCHES,
    InputStatistics,
    initial_latents,
    input_statistics,
)
from upq.training.streams import Stream, Streams
from upq.training.trainables import norm_weights, settle, trainables

#: The learning rate falls along a cosine to this share of its peak, as in EfficientQAT.
FINAL_LR_SHARE = 0.05
#: A weight that a layer starts from.
Start = torch.Tensor | PackedWeight
#: Hidden states of all calibration batches stay in memory up to this many bytes, and in a file above.
STREAM_BYTES = 8 * 2**30


@dataclass(frozen=True)
class BlockResult:
    """What a block's training leaves, by name inside the block (or, of a whole model, by full name).

    layers: the latents of the linears; plain: weights of norms that were trained, float32.
    """

    layers: dict[str, Latent] = field(default_factory=dict)
    plain: dict[str, torch.Tensor] = field(default_factory=dict)
    error_before: float = 0.0
    error_after: float = 0.0


@dataclass(frozen=True)
class Reconstruction:
    """What is reconstructed: all blocks of `model`, which stays as it is.

    name: "int4" or "int2", with which the names of the metrics begin. forms: how the layers are stored. start: full
    layer name -> (out, in) weight to start from, of any type or packed; its keys are the layers to quantize. seed:
    decides the signs of rotations. norms: full parameter name -> weight that a norm starts from, where it is not the
    model's.
    """

    model: Any
    name: str
    forms: Forms
    config: PrecisionConfig
    start: Mapping[str, Start]
    seed: int = 0
    norms: dict[str, torch.Tensor] = field(default_factory=dict)

    def forms_of(self, index: int) -> Forms:
        """The forms of the layers of a block, by their names in it."""
        return self.forms.below(f"{decoder_blocks(self.model)[0]}.{index}.")


class BlockCheckpoints(Protocol):
    """Where the results of finished blocks are kept, by the number of the block."""

    def load(self, index: int) -> BlockResult | None:
        """The result that was saved, or None. Tensors of a mapped file take no memory."""
        ...

    def save(self, index: int, result: BlockResult) -> None:
        """Keep the result of a block that has been trained."""
        ...


class NoBlockCheckpoints:
    """The checkpoints of a reconstruction that nobody resumes."""

    def load(self, index: int) -> None:
        """Nothing was kept."""

    def save(self, index: int, result: BlockResult) -> None:
        """Keep nothing."""


def reconstruct(
    task: Reconstruction,
    batches: list[Batch],
    context: RunContext,
    checkpoints: BlockCheckpoints | None = None,
    device: torch.device | None = None,
) -> BlockResult:
    """Quantize all blocks of the task's model. Returns the layers and norms by full name.

    Blocks with a checkpoint are not trained again, only run, so a resumed run continues bit by bit; what a checkpoint
    gives after it was saved is what is returned. device: where blocks are computed, one at a time; None stands for
    where the model computes. Without batches scales are only fitted.
    """
    model, checkpoints = task.model, checkpoints or NoBlockCheckpoints()
    prefix, blocks = decoder_blocks(model)
    here: torch.device = device or model.device
    folder = context.checkpoint_dir / "streams"
    streams = Streams.enter(model, batches, here, folder, STREAM_BYTES)
    whole, names = BlockResult(plain=dict(task.norms)), SeriesNames(task.name)
    for index, kept in enumerate(blocks):
        context.check(kept=True)
        name, block = f"{prefix}.{index}.", on_device(kept, here)
        start, plain = _below(task.start, name), _below(task.norms, name)
        _reach_targets(block, streams, index)
        result = checkpoints.load(index)
        if result is None:
            student = copy.deepcopy(block)
            set_parameters(student, plain)
            statistics = _statistics(student, list(start), task, streams, index)
            _log_scarce(statistics, f"{task.name}: block {index}", context)
            _prepare(student, start, statistics, task, index)
            result = _train(student, plain, streams, index, task, context)
            checkpoints.save(index, result)
            result = checkpoints.load(index) or result
        _advance(block, result, streams, index, task)
        whole.layers.update({name + layer: latent for layer, latent in result.layers.items()})
        whole.plain.update({name + norm: weight for norm, weight in result.plain.items()})
        context.metric(names.block_before, index, result.error_before)
        context.metric(names.block_after, index, result.error_after)
        context.progress(index + 1, detail=f"block {index + 1} of {len(blocks)}")
    return whole


def _below(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose names begin with the prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix)
    }


def _statistics(
    student: nn.Module, names: list[str], task: Reconstruction, streams: Streams, index: int
) -> list[InputStatistics]:
    """What the start of a block's layers needs to know of their inputs."""
    hessian = task.config.hessian if task.config.rounding == "ldlq" else None
    searched = task.config.scale_init == "search" or hessian
    return input_statistics(student, names, list(streams) if searched else [], index, hessian)


def _log_scarce(statistics: list[InputStatistics], where: str, context: RunContext) -> None:
    """Name the experts that saw too few tokens."""
    layers = [name for inputs in statistics if inputs.is_scarce for name in inputs.names]
    experts = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in layers))
    if experts:
        context.log(
            f"{where}: rounded to nearest, as they saw fewer than {FEWEST_TOKENS} tokens: {experts}"
        )


def _prepare(
    student: nn.Module,
    start: Mapping[str, Start],
    statistics: list[InputStatistics],
    task: Reconstruction,
    index: int,
) -> None:
    """Bring the linears of a block's copy into training form. start: the weights that they start from, by name."""
    device = next(student.parameters()).device
    weights = {
        name: (weight_of(weight) if isinstance(weight, PackedWeight) else weight).to(device).float()
        for name, weight in start.items()
    }
    seed = derived_seed(task.seed, f"block {index}")
    forms = task.forms_of(index)
    latents = initial_latents(weights, statistics, forms, task.config, seed)

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        return FakeQuantLinear(latents[name], linear.bias, forms.of(name).grid)

    swap_linears(student, list(start), make)


@torch.no_grad()
def _reach_targets(block: nn.Module, streams: Streams, index: int) -> None:
    """Move the FP16 stream behind the block, where it is the target of the student."""
    for stream in streams:
        stream.reference = stream.calls[index].run(block, stream.reference)


def _loss(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Squared error of every real token relative to its target's square, averaged over real tokens.

    Relative per token, because the first token of many models carries activations a thousand times larger than
    all others; in a plain mean it would be the only one that counts.
    """
    error = (output.float() - target.float()).square().sum(-1, keepdim=True)
    power = target.float().square().sum(-1, keepdim=True)
    return (error / power.clamp_min(1e-12) * weight).sum() / weight.sum()


def _stream_loss(student: nn.Module, stream: Stream, index: int) -> torch.Tensor:
    output = stream.calls[index].run(student, stream.inputs)
    return _loss(output, stream.reference, stream.weight)


def _train(
    student: nn.Module,
    plain: dict[str, torch.Tensor],
    streams: Streams,
    index: int,
    task: Reconstruction,
    context: RunContext,
) -> BlockResult:
    """Train a block's student. plain: its norms' weights by name where they are not the model's."""
    before = _error(student, streams, index)
    _optimize(student, streams, index, task.config.blockwise, context)
    after = _error(student, streams, index)
    if not math.isfinite(after):
        raise UserError(
            "diverged",
            f"Block {index} gave a non-finite error in the {task.name} stage.",
            f"Lower the learning rates of {task.name}.blockwise.",
        )
    layers = {name: layer.latent() for name, layer in fake_quant_layers(student)}
    if task.config.blockwise.norm_lr:
        plain = norm_weights(student)
    return BlockResult(layers, plain, before, after)


def _optimize(
    student: nn.Module, streams: Streams, index: int, config: BlockwiseConfig, context: RunContext
) -> None:
    """Train every parameter that has a learning rate; where none has one the student stays as it is."""
    groups = trainables(student, config)
    steps = config.epochs * len(streams)
    if not groups or not steps:
        return
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / steps))
    for _ in range(config.epochs):
        for stream in streams:
            context.check()
            _stream_loss(student, stream, index).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    settle(student)


def _cosine(share: float) -> float:
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def _error(student: nn.Module, streams: Streams, index: int) -> float:
    """Mean relative squared error over the first batches; 0 where there is no data."""
    losses = [
        _stream_loss(student, stream, index).item() for stream in list(streams)[:MEASURED_BATCHES]
    ]
    return sum(losses) / len(losses) if losses else 0.0


@torch.no_grad()
def _advance(
    block: nn.Module, result: BlockResult, streams: Streams, index: int, task: Reconstruction
) -> None:
    """Move the quantized stream behind the block, computed from exactly what will be stored; or set it to FP16's."""
    if task.config.blockwise.inputs == "fp16":
        for stream in streams:
            stream.inputs = stream.reference
        return
    quantized, forms = copy.deepcopy(block), task.forms_of(index)
    for name, latent in result.layers.items():
        stored = quantized.get_parameter(f"{name}.weight")
        stored.copy_(weight_of(latent.to(stored.device).pack(forms.of(name).grid)))
    set_parameters(quantized, result.plain)
    for stream in streams:
        stream.inputs = stream.calls[index].run(quantized, stream.inputs)
