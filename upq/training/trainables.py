"""What a stage trains, and AdamW for it; with 8-bit moments where memory is short.

Weights move in units of their layer's mean step, or each in that of its own group. Scales are logarithms, and norms are
trained as logarithmic gains on the weight that they had, so a learning rate of either is relative to what it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from upq.config import BlockwiseConfig, DistillConfig
from upq.errors import UserError
from upq.layers import FakeQuantLinear, fake_quant_layers
from upq.training.adamw8bit import AdamW8bit

#: Learning rates within this ratio become one on a GPU, where every optimizer group is a launch.
RATE_RATIO = 1.05

#: Learning rates that only block-wise training has, and the parameters of a layer that they move.
BLOCKWISE_RATES = {
    "zero_lr": ("zero",),
    "vector_lr": ("scale_in", "scale_out"),
    "lattice_lr": ("affine", "shift"),
}


def trainables(student: nn.Module, config: BlockwiseConfig | DistillConfig) -> list[dict[str, Any]]:
    """Optimizer groups of `student` at their peak learning rates; freezes what has none.

    With norm_lr the norms compute with gains until `settle`, and weights in units of their groups' steps are counted in
    them until then.
    """
    student.requires_grad_(False)
    groups: list[dict[str, Any]] = []
    scales: list[torch.Tensor] = []
    for _, layer in fake_quant_layers(student):
        step = layer.log_scale.detach().exp().mean().item()
        if config.weight_lr and getattr(config, "weight_unit", "layer") == "group":
            groups.append({"params": [_in_steps(layer)], "lr": config.weight_lr})
        elif config.weight_lr:
            groups.append({"params": [layer.weight], "lr": config.weight_lr * step})
        scales.append(layer.log_scale)
        for rate, names in BLOCKWISE_RATES.items():
            for name in names:
                parameter, size = getattr(layer, name), step if name == "shift" else 1.0
                if name == "zero" and not layer.grid.trains_zeros:
                    continue
                if parameter is not None and getattr(config, rate, 0.0):
                    groups.append({"params": [parameter], "lr": getattr(config, rate) * size})
    if config.scale_lr:
        groups.append({"params": scales, "lr": config.scale_lr})
    if config.norm_lr:
        groups.append({"params": _norm_gains(student), "lr": config.norm_lr})
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_()
    return groups


class _Steps(nn.Module):
    """A weight (out, in) as multiples of the steps (out, groups) that its groups had."""

    step: torch.Tensor

    def __init__(self, step: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("step", step.unsqueeze(-1), persistent=False)

    def forward(self, multiples: torch.Tensor) -> torch.Tensor:
        return (multiples.view(*self.step.shape[:2], -1) * self.step).flatten(1)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight.view(*self.step.shape[:2], -1) / self.step).flatten(1)


def _in_steps(layer: FakeQuantLinear) -> torch.Tensor:
    """What is trained in the place of a layer's weight."""
    return _learned(layer, _Steps(layer.log_scale.detach().exp()))


def _learned(module: Any, form: nn.Module) -> torch.Tensor:
    """What is trained in the place of a module's weight, which `form` computes of it until `settle`."""
    parametrize.register_parametrization(module, "weight", form, unsafe=True)
    return module.parametrizations["weight"].original


class _Gain(nn.Module):
    """The weight of a norm as base * exp(gain): float32 gains, a weight in the model's own dtype."""

    base: torch.Tensor

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("base", weight.detach().clone(), persistent=False)

    def forward(self, gain: torch.Tensor) -> torch.Tensor:
        return (self.base * gain.exp()).to(self.dtype)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(weight, dtype=torch.float32)


def norm_weights(root: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the norms' weights by parameter name, float32 on the CPU."""
    return {
        f"{name}.weight": norm.weight.detach().float().to("cpu", copy=True)
        for name, norm in _norms(root)
    }


def _norms(root: nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of the modules below root whose weight is a vector."""
    return [
        (name, module)
        for name, module in root.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 1
    ]


def _norm_gains(root: nn.Module) -> list[torch.Tensor]:
    gains = []
    for _, norm in _norms(root):
        dtype = norm.weight.dtype
        norm.weight = nn.Parameter(norm.weight.detach().float())
        gains.append(_learned(norm, _Gain(norm.weight, dtype)))
    return gains


def settle(root: nn.Module) -> None:
    """Make trained norms and weights plain again, with the values that they have now."""
    for module in list(root.modules()):
        if parametrize.is_parametrized(module, "weight"):
            weight: Any = module.weight
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.register_parameter("weight", nn.Parameter(weight.detach(), requires_grad=False))


def make_optimizer(student: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW over `trainables`, on a GPU with `shared_rates`. With optimizer_bits 8 gradients are kept in bfloat16 as
    well.

    Raises UserError("bad_config") where nothing has a learning rate.
    """
    groups = trainables(student, config)
    if not groups:
        raise UserError(
            "bad_config",
            "The distillation would train nothing: weight_lr, scale_lr and norm_lr are all 0.",
            "Raise one of them, or set the distillation's tokens to 0.",
        )
    if config.optimizer_bits == 8:
        for group in groups:
            for parameter in group["params"]:
                parameter.grad_dtype = torch.bfloat16
        return AdamW8bit(groups, weight_decay=config.weight_decay)
    if groups[0]["params"][0].is_cuda:
        groups = shared_rates(groups)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def shared_rates(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups of the same parameters with few learning rates: those close to one power of RATE_RATIO become
    it, which changes a rate by 2.5 % at most. A rate that is close to no other one stays as it is.
    """
    close: dict[int, list[dict[str, Any]]] = {}
    for group in groups:
        close.setdefault(round(math.log(group["lr"], RATE_RATIO)), []).append(group)
    return [
        {
            "params": [parameter for group in some for parameter in group["params"]],
            "lr": RATE_RATIO**power if len(some) > 1 else some[0]["lr"],
        }
        for power, some in close.items()
    ]


def training_state(
    student: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that a training step changes; `optimizer` has made a step."""
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
            for part, value in optimizer.state[parameter].items():
                yield f"{name}.{part}", value


@torch.no_grad()
def restore(
    student: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what training_state gave."""
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(tensors[name])
            start = f"{name}."
            optimizer.state[parameter] = {
                key.removeprefix(start): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(start)
            }
