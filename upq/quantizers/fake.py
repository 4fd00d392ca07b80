"""Fake quantization with the straight-through gradient and the LSQ-style gradient of the scale.

The scale is trained as its logarithm: it stays positive, and one learning rate fits every layer because a step
is relative. The backward pass recomputes from the weight instead of saving intermediates, so that the op keeps
nothing alive but its inputs and its output, which the linear layer needs anyway.
"""

from __future__ import annotations

from typing import Any

import torch

from upq.quantizers.grid import SMALLEST_SCALE, Grid

#: Share of the outermost bin's end beyond which a weight counts as clipped (ParetoQ's 1 - eps).
CLIP_SHARE = 0.99


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, weight: torch.Tensor, log_scale: torch.Tensor, grid: Grid, dtype: torch.dtype
    ) -> torch.Tensor:
        rows, columns = weight.shape
        scale = log_scale.exp().clamp_min(SMALLEST_SCALE).unsqueeze(-1)
        half = grid.levels // 2
        steps = (weight.view(rows, scale.shape[1], -1) / scale).floor_().clamp_(-half, half - 1)
        quantized = steps.add_(0.5).mul_(scale).view(rows, columns).to(dtype)
        context.save_for_backward(weight, log_scale, quantized)
        context.half = half
        return quantized

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, log_scale, quantized = context.saved_tensors
        rows, columns = weight.shape
        groups = weight.view(rows, log_scale.shape[1], -1)
        limit = log_scale.exp().clamp_min(SMALLEST_SCALE).unsqueeze(-1) * (
            context.half * CLIP_SHARE
        )
        inside = groups.abs() <= limit
        flowing = gradient.float().view_as(groups) * inside
        scale_gradient = None
        if context.needs_input_grad[1]:
            # scale * d/dscale of the quantized weight: (quantized - weight) inside, quantized where clipped.
            scale_gradient = (gradient * quantized).view_as(groups).sum(-1, dtype=torch.float32)
            scale_gradient -= (flowing * groups).sum(-1)
        return flowing.view(rows, columns), scale_gradient, None, None


def fake_quantize(
    weight: torch.Tensor, log_scale: torch.Tensor, grid: Grid, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The quantized weight (out, in) in dtype, differentiable in weight (out, in) and log_scale (out, groups).

    Gradients (UPQ section 3.2 with ParetoQ's clipping): for the weight, straight through where it is not
    clipped; for the scale, (q - w / s) inside and the outermost level where clipped, times s for the logarithm.
    """
    return _FakeQuantize.apply(weight, log_scale, grid, dtype)
