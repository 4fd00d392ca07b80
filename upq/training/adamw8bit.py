"""AdamW whose moments take 8 bits each, for where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: Values that share a largest value in an 8-bit moment, and values that are updated at once.
BLOCK, CHUNK = 256, 2**22


@dataclass(frozen=True)
class _Factors:
    """What a step multiplies or divides by, numbers of the host.

    decay: values, by what weight decay leaves of them. rate: the learning rate over the first moment's bias. second:
    the second moment's bias.
    """

    decay: float
    rate: float
    second: float


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, algorithm 2) that keeps its moments in 8 bits, 2.03 bytes per value in all.

    A moment is a code in units of its block's largest value: the first as signed square, the second as fourth power,
    so that codes are dense at zero. Rounding is random and keeps the expected value, because rounding to nearest
    would swallow decays smaller than half a step. The draw depends on step and parameter alone: a resumed run
    continues bit by bit.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.betas, self.eps = betas, eps
        #: The steps that each parameter has made, as `state` has them, but without asking a device.
        self._steps: dict[torch.Tensor, int] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Waits for no device, but in the first step of a resumed run."""
        assert closure is None, "the loss is computed before the step"
        parameters = [
            (parameter, group) for group in self.param_groups for parameter in group["params"]
        ]
        for index, (parameter, group) in enumerate(parameters):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state |= _empty_state(parameter)
            if parameter not in self._steps:
                self._steps[parameter] = int(state["step"])
            state["step"] += 1
            self._steps[parameter] = step = self._steps[parameter] + 1
            source = torch.Generator(parameter.device).manual_seed(step * len(parameters) + index)
            values, gradient = parameter.view(-1), parameter.grad.reshape(-1)
            factors = self._factors(group, step)
            for start in range(0, len(values), CHUNK):
                part = slice(start, min(start + CHUNK, len(values)))
                self._update(values[part], gradient[part].float(), state, part, factors, source)

    def _factors(self, group: dict[str, Any], step: int) -> _Factors:
        (beta1, beta2), rate = self.betas, group["lr"]
        decay = 1 - rate * group["weight_decay"]
        return _Factors(decay, rate / (1 - beta1**step), 1 - beta2**step)

    def _update(
        self,
        values: torch.Tensor,
        gradient: torch.Tensor,
        state: dict[str, torch.Tensor],
        part: slice,
        factors: _Factors,
        source: torch.Generator,
    ) -> None:
        beta1, beta2 = self.betas
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        first = _decode(state["first"][blocks], state["first_peak"][blocks], len(values), 2)
        second = _decode(state["second"][blocks], state["second_peak"][blocks], len(values), 4)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["first"][blocks], state["first_peak"][blocks] = _encode(first, 127, 2, source)
        codes, state["second_peak"][blocks] = _encode(second, 255, 4, source)
        # A second moment of zero under a first moment that is none would be a huge step.
        state["second"][blocks] = codes.clamp_min(1)
        scale = (second / factors.second).sqrt_().add_(self.eps)
        values.mul_(factors.decay)
        values.addcdiv_(first, scale, value=-factors.rate)


def _empty_state(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = -(-parameter.numel() // BLOCK)
    device = parameter.device
    return {
        "step": torch.zeros(()),
        "first": torch.zeros(rows, BLOCK, dtype=torch.int8, device=device),
        "first_peak": torch.zeros(rows, 1, device=device),
        "second": torch.zeros(rows, BLOCK, dtype=torch.uint8, device=device),
        "second_peak": torch.zeros(rows, 1, device=device),
    }


def _decode(codes: torch.Tensor, peak: torch.Tensor, count: int, power: int) -> torch.Tensor:
    """Values (count,) float32 of codes (blocks, BLOCK); peak holds each block's value of code 1."""
    steps = codes.float()
    return (steps * steps.abs().pow_(power - 1)).mul_(peak).view(-1)[:count]


def _encode(
    values: torch.Tensor, levels: int, power: int, source: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes (blocks, BLOCK), value of code 1 (blocks, 1)): sign * |code|**power * unit has the values as mean."""
    rows = -(-len(values) // BLOCK)
    padded = nn.functional.pad(values, (0, rows * BLOCK - len(values))).view(rows, BLOCK)
    size = padded.abs()
    unit = size.amax(-1, keepdim=True) / float(levels**power)
    size /= unit.clamp_min(torch.finfo(torch.float32).tiny)
    low = (size.sqrt() if power == 2 else size.sqrt().sqrt_()).floor_()
    below, above = low**power, (low + 1) ** power
    share = (size - below).div_(above - below)
    draw = torch.rand(share.shape, generator=source, device=share.device)
    codes = low.add_(draw < share).clamp_(max=levels).mul_(padded.sign())
    return codes.to(torch.int8 if power == 2 else torch.uint8), unit
