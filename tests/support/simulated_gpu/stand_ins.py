"""What Triton's kernels for training compute, by torch over the whole grid at once.

Triton's interpreter works through the programs of a launch one by one, which takes a hundred times as long as torch.
So the simulated GPU launches these instead, except in tests that compare a kernel with its definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upq.layers import TwoLevelGrid


def _norm_weights(
    inputs: torch.Tensor, base: torch.Tensor, gain: torch.Tensor | None
) -> torch.Tensor:
    weight = base.float() if gain is None else base.float() * gain.exp()
    return weight.to(inputs.dtype).float()


def _inverse(values: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)


def norm_kernel(
    inputs: torch.Tensor,
    base: torch.Tensor,
    gain: torch.Tensor | None,
    outputs: torch.Tensor,
    epsilon: float,
    **_: Any,
) -> None:
    """As kernels.gpu.norms.norm_kernel."""
    values = inputs.float()
    normal = (values * _inverse(values, epsilon)).to(inputs.dtype).float()
    outputs.copy_(normal * _norm_weights(inputs, base, gain))


def norm_backward_kernel(
    inputs: torch.Tensor,
    base: torch.Tensor,
    gain: torch.Tensor | None,
    gradient: torch.Tensor,
    by_inputs: torch.Tensor,
    by_gain: torch.Tensor | None,
    epsilon: float,
    **_: Any,
) -> None:
    """As kernels.gpu.norms.norm_backward_kernel; the first row of by_gain has the whole sum."""
    values = inputs.float()
    arriving = gradient.float() * _norm_weights(inputs, base, gain)
    inverse = _inverse(values, epsilon)
    products = arriving * (normal := values * inverse)
    by_inputs.copy_(inverse * (arriving - normal * products.mean(-1, keepdim=True)))
    if by_gain is not None:
        by_gain.zero_()
        by_gain[0] = products.flatten(0, -2).sum(0)


def _scales(log_scale: torch.Tensor, smallest: float) -> torch.Tensor:
    return log_scale.reshape(-1, 1).exp().clamp(min=smallest)


def _offset(zero: torch.Tensor, scale: torch.Tensor, levels: int) -> torch.Tensor:
    return scale * zero.reshape(-1, 1).round().clamp(0, levels - 1)


def forward_kernel(
    log_scale: torch.Tensor,
    zero: torch.Tensor | None,
    smallest: float,
    weight: torch.Tensor,
    quantized: torch.Tensor,
    LEVELS: int,
    GROUP: int,
    SETTLED: bool,
    **_: Any,
) -> None:
    """As kernels.gpu.training.forward_kernel."""
    scale = log_scale.reshape(-1, 1) if SETTLED else _scales(log_scale, smallest)
    groups = weight.view(-1, GROUP)
    if zero is None:
        level = (groups / scale).floor().clamp(-(LEVELS // 2), LEVELS // 2 - 1) + 0.5
        quantized.view(-1, GROUP).copy_(level * scale)
    else:
        offset = zero.reshape(-1, 1) if SETTLED else _offset(zero, scale, LEVELS)
        code = ((groups + offset) / scale + 0.5).floor().clamp(0, LEVELS - 1)
        quantized.view(-1, GROUP).copy_(code * scale - offset)


def backward_kernel(
    log_scale: torch.Tensor,
    zero: torch.Tensor | None,
    smallest: float,
    weight: torch.Tensor,
    quantized: torch.Tensor,
    gradient: torch.Tensor,
    weight_gradient: torch.Tensor,
    scale_gradient: torch.Tensor,
    zero_gradient: torch.Tensor | None,
    reach: float,
    LEVELS: int,
    GROUP: int,
    SETTLED: bool,
    **_: Any,
) -> None:
    """As kernels.gpu.training.backward_kernel."""
    scale = log_scale.reshape(-1, 1) if SETTLED else _scales(log_scale, smallest)
    value, arriving = weight.view(-1, GROUP), gradient.view(-1, GROUP).float()
    centred = value
    if zero is not None:
        offset = zero.reshape(-1, 1) if SETTLED else _offset(zero, scale, LEVELS)
        centred = value - ((LEVELS - 1) / 2 * scale - offset)
    flowing = arriving * (centred.abs() <= scale * reach)
    weight_gradient.view(-1, GROUP).copy_(flowing)
    by_scale = arriving * quantized.view(-1, GROUP).float() - flowing * value
    scale_gradient.view(-1).copy_(by_scale.sum(1))
    if zero_gradient is not None:
        zero_gradient.view(-1).copy_((flowing - arriving).sum(1) * scale[:, 0])


def settle_kernel(
    log_scale: torch.Tensor,
    zero: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    **_: Any,
) -> None:
    """As kernels.gpu.training.settle_kernel."""
    settled, offsets = TwoLevelGrid(2).settled(log_scale.exp(), zero)
    assert offsets is not None
    scale.copy_(settled)
    offset.copy_(offsets)


#: Name of a kernel -> what takes its place.
STAND_INS: dict[str, Callable[..., None]] = {
    made.__name__: made
    for made in (
        norm_kernel,
        norm_backward_kernel,
        forward_kernel,
        backward_kernel,
        settle_kernel,
    )
}
