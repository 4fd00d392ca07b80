"""Fake quantization with the straight-through gradient and the LSQ-style gradient of the scale.

The scale is trained as its logarithm: it stays positive, and one learning rate fits every layer because a step
is relative. The backward pass recomputes from the weight instead of saving intermediates, so that the op keeps
nothing alive but its inputs and its output, which the linear layer needs anyway.
"""

from __future__ import annotations

from typing import Any

import torch

from upq.quantizers.grid import SMALLEST_SCALE, Grid, row_chunks

#: Share of the outermost bin's end beyond which a weight counts as clipped (ParetoQ's 1 - eps).
CLIP_SHARE = 0.99


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, weight: torch.Tensor, log_scale: torch.Tensor, grid: Grid, dtype: torch.dtype
    ) -> torch.Tensor:
        scale = _scale(log_scale)
        half = grid.levels // 2
        quantized = torch.empty_like(weight, dtype=dtype)
        for rows in row_chunks(weight):
            groups = _grouped(weight[rows], log_scale)
            steps = (groups / scale[rows]).floor_().clamp_(-half, half - 1)
            quantized[rows] = steps.add_(0.5).mul_(scale[rows]).flatten(1)
        context.save_for_backward(weight, log_scale, quantized)
        context.half = half
        return quantized

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, log_scale, quantized = context.saved_tensors
        gradient = gradient.contiguous()
        limit = _scale(log_scale) * (context.half * CLIP_SHARE)
        weight_gradient = torch.empty_like(weight)
        scale_gradient = torch.empty_like(log_scale)
        for rows in row_chunks(weight):
            groups = _grouped(weight[rows], log_scale)
            arriving = _grouped(gradient[rows].float(), log_scale)
            # scale * d/dscale of the quantized weight: (quantized - weight) inside, quantized where clipped.
            by_scale = arriving * _grouped(quantized[rows], log_scale)
            flowing = arriving * (groups.abs() <= limit[rows])
            scale_gradient[rows] = by_scale.addcmul_(flowing, groups, value=-1).sum(-1)
            weight_gradient[rows] = flowing.flatten(1)
        return weight_gradient, scale_gradient, None, None


def _scale(log_scale: torch.Tensor) -> torch.Tensor:
    return log_scale.exp().clamp_min(SMALLEST_SCALE).unsqueeze(-1)


def _grouped(weight: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """(rows, in) -> (rows, groups, in / groups)."""
    return weight.view(len(weight), log_scale.shape[1], -1)


def fake_quantize(
    weight: torch.Tensor, log_scale: torch.Tensor, grid: Grid, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The quantized weight (out, in) in dtype, differentiable in weight (out, in) and log_scale (out, groups).

    Gradients (UPQ section 3.2 with ParetoQ's clipping): for the weight, straight through where it is not
    clipped; for the scale, (q - w / s) inside and the outermost level where clipped, times s for the logarithm.
    """
    return _FakeQuantize.apply(weight, log_scale, grid, dtype)
