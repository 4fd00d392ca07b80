"""AdamW whose moments take 8 bits each, for where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: Values that share a largest value in an 8-bit moment, and values that are updated at once.
BLOCK, CHUNK = 256, 2**22


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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
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
            state["step"] += 1
            seed = int(state["step"]) * len(parameters) + index
            source = torch.Generator(parameter.device).manual_seed(seed)
            values, gradient = parameter.view(-1), parameter.grad.reshape(-1)
            for start in range(0, len(values), CHUNK):
                part = slice(start, min(start + CHUNK, len(values)))
                self._update(values[part], gradient[part].float(), state, part, group, source)

    def _update(
        self,
        values: torch.Tensor,
        gradient: torch.Tensor,
        state: dict[str, torch.Tensor],
        part: slice,
        group: dict[str, Any],
        source: torch.Generator,
    ) -> None:
        (beta1, beta2), step = self.betas, state["step"].item()
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        first = _decode(state["first"][blocks], state["first_peak"][blocks], len(values), 2)
        second = _decode(state["second"][blocks], state["second_peak"][blocks], len(values), 4)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["first"][blocks], state["first_peak"][blocks] = _encode(first, 127, 2, source)
        codes, state["second_peak"][blocks] = _encode(second, 255, 4, source)
        # A second moment of zero under a first moment that is none would be a huge step.
        state["second"][blocks] = codes.clamp_min(1)
        scale = (second / (1 - beta2**step)).sqrt_().add_(self.eps)
        values.mul_(1 - group["lr"] * group["weight_decay"])
        values.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**step))


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
