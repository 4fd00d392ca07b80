"""Engine 1: block-wise reconstruction, one decoder block at a time (UPQ section 3.1; EfficientQAT's Block-AP).

Two streams of hidden states run through the model side by side. The FP16 stream gives every block its target; the
quantized stream, made by the blocks that are already quantized, gives it its input. Within a block the weights
and scales of all its linears learn together to reproduce the target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from upq.config import BlockwiseConfig
from upq.context import RunContext
from upq.data import Batch
from upq.errors import UserError
from upq.forward import BlockCall, block_calls
from upq.layers import FakeQuantLinear, fake_quant_layers, swap_linears
from upq.quantizers import Grid
from upq.structure import decoder_blocks

#: The learning rate falls along a cosine to this share of its peak, as in EfficientQAT.
FINAL_LR_SHARE = 0.05
#: Batches that a mean over activations or errors is taken from; more would change it little.
MEASURED_BATCHES = 3


@dataclass(frozen=True)
class BlockResult:
    """What a block's training leaves: layer name inside the block -> (weight (out, in), scale (out, groups))."""

    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    error_before: float
    error_after: float


@dataclass
class _Stream:
    """One calibration batch on its way through the model; hidden states (rows, tokens, hidden)."""

    reference: torch.Tensor
    quantized: torch.Tensor
    calls: list[BlockCall]
    weight: torch.Tensor


@dataclass(frozen=True)
class Task:
    """What to reconstruct: grid, group size, initial scales, and the weights to start from.

    start: full layer name -> (out, in) float32 weight that training starts at; its keys are the layers to quantize.
    """

    name: str
    grid: Grid
    group_size: int
    scale_init: Any
    config: BlockwiseConfig
    start: dict[str, torch.Tensor]


def reconstruct(
    model: Any,
    task: Task,
    batches: list[Batch],
    context: RunContext,
    load: Callable[[int], BlockResult | None],
    save: Callable[[int, BlockResult], None],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Quantize all blocks of `model`, which stays as it is. Returns full layer name -> (weight, scale).

    load(i) gives the saved result of block i or None, save(i, result) keeps it: finished blocks are not trained
    again, only run, so a resumed run continues bit by bit. Without batches scales are only fitted.
    """
    prefix, blocks = decoder_blocks(model)
    streams = _enter(model, batches)
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for index, block in enumerate(blocks):
        context.check()
        here = f"{prefix}.{index}."
        names = [name.removeprefix(here) for name in task.start if name.startswith(here)]
        targets = [stream.calls[index].run(block, stream.reference).detach() for stream in streams]
        result = load(index)
        if result is None:
            student = _student(block, names, task, here, streams, index)
            result = _train(student, streams, targets, index, task, context)
            save(index, result)
        quantized = _quantized(block, result, task.grid)
        for stream, target in zip(streams, targets, strict=True):
            stream.quantized = _advance(quantized, stream, index)
            stream.reference = target
        layers |= {here + name: pair for name, pair in result.layers.items()}
        context.metric(f"{task.name}_block_before", index, result.error_before)
        context.metric(f"{task.name}_block_after", index, result.error_after)
        context.progress(index + 1, detail=f"block {index + 1} of {len(blocks)}")
    return layers


@torch.no_grad()
def _enter(model: Any, batches: list[Batch]) -> list[_Stream]:
    streams = []
    for batch in batches:
        hidden, calls = block_calls(model, batch.ids)
        weight = batch.real.float().unsqueeze(-1)
        streams.append(_Stream(hidden, hidden.clone(), calls, weight))
    return streams


def _student(
    block: nn.Module, names: list[str], task: Task, here: str, streams: list[_Stream], index: int
) -> nn.Module:
    """A copy of the block whose linears are in training form."""
    student = copy.deepcopy(block)
    importance = _input_powers(block, names, streams, index) if task.scale_init == "search" else {}

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        weight = task.start[here + name].to(linear.weight.device)
        scale = task.grid.fit(weight, task.group_size, task.scale_init, importance.get(name))
        return FakeQuantLinear(weight, linear.bias, scale, task.grid)

    swap_linears(student, names, make)
    return student


@torch.no_grad()
def _input_powers(
    block: nn.Module, names: list[str], streams: list[_Stream], index: int
) -> dict[str, torch.Tensor]:
    """Mean square of every linear's inputs (in,), over the FP16 stream's real tokens."""
    sums: dict[str, torch.Tensor] = {}

    def record(name: str, weight: torch.Tensor) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            power = (inputs[0].float().square() * weight).sum((0, 1))
            sums[name] = sums.get(name, 0) + power

        return hook

    for stream in streams[:MEASURED_BATCHES]:
        handles = [
            block.get_submodule(name).register_forward_pre_hook(record(name, stream.weight))
            for name in names
        ]
        stream.calls[index].run(block, stream.reference)
        for handle in handles:
            handle.remove()
    return sums


def _loss(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Squared error of every real token relative to its target's square, averaged over real tokens.

    Relative per token, because the first token of many models carries activations a thousand times larger than
    all others; in a plain mean it would be the only one that counts.
    """
    error = (output.float() - target.float()).square().sum(-1, keepdim=True)
    power = target.float().square().sum(-1, keepdim=True)
    return (error / power.clamp_min(1e-12) * weight).sum() / weight.sum()


def _train(
    student: nn.Module,
    streams: list[_Stream],
    targets: list[torch.Tensor],
    index: int,
    task: Task,
    context: RunContext,
) -> BlockResult:
    before = _error(student, streams, targets, index)
    config = task.config
    if streams and config.tokens:
        steps = config.epochs * len(streams)
        optimizer = _optimizer(student, config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / steps))
        for _ in range(config.epochs):
            for stream, target in zip(streams, targets, strict=True):
                context.check()
                loss = _loss(
                    stream.calls[index].run(student, stream.quantized), target, stream.weight
                )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
    layers = {
        name: (layer.weight.detach().to("cpu", copy=True), layer.log_scale.detach().exp().cpu())
        for name, layer in fake_quant_layers(student)
    }
    after = _error(student, streams, targets, index)
    if not math.isfinite(after):
        raise UserError(
            "diverged",
            f"Block {index} gave a non-finite error in the {task.name} stage.",
            f"Lower {task.name} weight_lr and scale_lr.",
        )
    return BlockResult(layers, before, after)


def _cosine(share: float) -> float:
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * share))


def _optimizer(student: nn.Module, config: BlockwiseConfig) -> torch.optim.AdamW:
    """Weights move in units of their layer's mean step, scales in units of themselves (they are logarithms)."""
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return torch.optim.AdamW(
        trainable_groups(student, config.weight_lr, config.scale_lr), weight_decay=0.0, fused=True
    )


def trainable_groups(root: nn.Module, weight_lr: float, scale_lr: float) -> list[dict[str, Any]]:
    """Optimizer groups for every training-form layer below root; turns on their gradients."""
    groups: list[dict[str, Any]] = []
    scales: list[torch.Tensor] = []
    for _, layer in fake_quant_layers(root):
        step = layer.log_scale.detach().exp().mean().item()
        groups.append({"params": [layer.weight.requires_grad_()], "lr": weight_lr * step})
        scales.append(layer.log_scale.requires_grad_())
    return [*groups, {"params": scales, "lr": scale_lr}]


@torch.no_grad()
def _error(
    student: nn.Module, streams: list[_Stream], targets: list[torch.Tensor], index: int
) -> float:
    """Mean relative squared error over the first batches; 0 where there is no data."""
    pairs = list(zip(streams, targets, strict=True))[:MEASURED_BATCHES]
    losses = [
        _loss(stream.calls[index].run(student, stream.quantized), target, stream.weight).item()
        for stream, target in pairs
    ]
    return sum(losses) / len(losses) if losses else 0.0


@torch.no_grad()
def _quantized(block: nn.Module, result: BlockResult, grid: Grid) -> nn.Module:
    """A copy of the block whose linears hold exactly what will be stored."""
    twin = copy.deepcopy(block)
    for name, (weight, scale) in result.layers.items():
        stored = twin.get_parameter(f"{name}.weight")
        stored.copy_(grid.round_trip(weight, scale))
    return twin


@torch.no_grad()
def _advance(block: nn.Module, stream: _Stream, index: int) -> torch.Tensor:
    return stream.calls[index].run(block, stream.quantized)
