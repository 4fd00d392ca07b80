"""Fake quantization with the straight-through gradient and the LSQ-style gradient of the scale.

The scale is trained as its logarithm: it stays positive, and one learning rate fits every layer because a step
is relative. The backward pass recomputes from the weight instead of saving intermediates, so that the op keeps
nothing alive but its inputs and its output, which the linear layer needs anyway (and on a GPU the settled scales and
offsets of a grid of two levels). On a CPU it runs in C
(kernels.cpu.training), on a GPU in Triton (kernels.gpu.training); what stands here is the definition, and what runs
elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from kernels.cpu import training
from upq.layers.grid import SMALLEST_SCALE, Grid, row_chunks, unsqueezed
from upq.layers.two_levels import MOST_STEPS, SMALLEST, TwoLevelGrid

#: Share of the outermost bin's end beyond which a weight counts as clipped (ParetoQ's 1 - eps).
CLIP_SHARE = 0.99


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        weight: torch.Tensor,
        log_scale: torch.Tensor,
        zero: torch.Tensor | None,
        grid: Grid,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        context.grid = grid
        context.levels = levels = _gpu_levels(weight, log_scale, zero, grid, dtype)
        if levels is not None:
            quantized = levels.nearest(weight, dtype)
            context.save_for_backward(weight, log_scale, zero, quantized)
            return quantized
        scale, offset = _dense(*grid.settled(log_scale.exp(), zero))
        if training.is_usable(weight, log_scale, dtype):
            quantized = training.forward(weight, scale, offset, grid.levels, dtype)
        else:
            quantized = torch.empty_like(weight, dtype=dtype)
            for rows in row_chunks(weight):
                groups, steps = _grouped(weight[rows], log_scale), scale[rows].unsqueeze(-1)
                offsets = unsqueezed(_part(offset, rows))
                quantized[rows] = grid.round(groups, steps, offsets).flatten(1)
        context.save_for_backward(weight, scale, offset, quantized)
        return quantized

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, scale, offset, quantized = context.saved_tensors
        share = CLIP_SHARE if offset is None else 1.0
        if context.levels is not None:
            return *context.levels.gradients(weight, quantized, gradient, share), None, None
        count = context.grid.levels
        if training.is_usable(weight, scale, quantized.dtype):
            found = training.backward(weight, scale, offset, count, share, quantized, gradient)
            return *found, None, None
        weight_gradient, scale_gradient = torch.empty_like(weight), torch.empty_like(scale)
        zero_gradient = None if offset is None else torch.empty_like(offset)
        gradient, scale = gradient.contiguous(), scale.unsqueeze(-1)
        middle = None if offset is None else (count - 1) / 2 * scale - offset.unsqueeze(-1)
        limit = scale * (count / 2 * share)
        for rows in row_chunks(weight):
            groups = _grouped(weight[rows], scale)
            arriving = _grouped(gradient[rows].float(), scale)
            # scale * d/dscale of the quantized weight: (quantized - weight) inside, quantized where clipped.
            by_scale = arriving * _grouped(quantized[rows], scale)
            centred = groups if middle is None else groups - middle[rows]
            flowing = arriving * (centred.abs() <= limit[rows])
            scale_gradient[rows] = by_scale.addcmul_(flowing, groups, value=-1).sum(-1)
            weight_gradient[rows] = flowing.flatten(1)
            if zero_gradient is not None:  # d/dzero: 0 inside, -scale where clipped
                zero_gradient[rows] = (flowing - arriving).sum(-1) * scale[rows].squeeze(-1)
        return weight_gradient, scale_gradient, zero_gradient, None, None


@cache
def _gpu_kernels() -> Any | None:
    """kernels.gpu.training, or None where Triton is missing."""
    try:
        from kernels.gpu import training as triton_training  # noqa: PLC0415  only where there is a GPU
    except ImportError:
        return None
    return triton_training


def _gpu_levels(
    weight: torch.Tensor,
    log_scale: torch.Tensor,
    zero: torch.Tensor | None,
    grid: Grid,
    dtype: torch.dtype,
) -> Any | None:
    """The kernels.gpu.training.Levels of a weight on a GPU; None where it has to do without."""
    if not weight.is_cuda or (gpu := _gpu_kernels()) is None:
        return None
    is_settled = isinstance(grid, TwoLevelGrid)  # a launch of its own, for both passes
    given = settled(log_scale, zero, grid) if is_settled else (log_scale, zero)
    levels = gpu.Levels(*given, grid.levels, SMALLEST_SCALE, is_settled)
    return levels if levels.fit(weight, dtype) else None


def settled(
    log_scale: torch.Tensor, zero: torch.Tensor | None, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Grid.settled of the scales of a latent, those of two levels on a GPU in one launch."""
    gpu = _gpu_kernels() if log_scale.is_cuda and isinstance(grid, TwoLevelGrid) else None
    if gpu is not None and zero is not None and gpu.are_plain(log_scale, zero):
        return gpu.settle(log_scale, zero, MOST_STEPS, SMALLEST)
    return grid.settled(log_scale.exp(), zero)


def _dense(
    scale: torch.Tensor, offset: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both laid out as C reads them, whatever the layout in which a solver left the scales."""
    return scale.contiguous(), None if offset is None else offset.contiguous()


def _part(offset: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if offset is None else offset[rows]


def _grouped(weight: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """(rows, in) -> (rows, groups, in / groups)."""
    return weight.view(len(weight), log_scale.shape[1], -1)


def fake_quantize(
    weight: torch.Tensor,
    log_scale: torch.Tensor,
    grid: Grid,
    dtype: torch.dtype = torch.float32,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """The quantized weight (out, in) in dtype, differentiable in weight (out, in), log_scale and zero (out, groups).

    Gradients (UPQ section 3.2 with ParetoQ's clipping; EfficientQAT appendix C): for the weight, straight through
    where it is not clipped; for the scale, (q - w / s) inside and the outermost level where clipped, times s for the
    logarithm; for zeros of groups, straight through their rounding, -s where clipped. Settling scales and zeros to
    what can be stored (Grid.settled) is passed straight through as well.
    """
    return _FakeQuantize.apply(weight, log_scale, zero, grid, dtype)
