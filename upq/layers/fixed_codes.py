"""Linears whose codes stay while their scales learn: EfficientQAT's E2E-QP, d weight / d scale = code - zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from upq.layers.fake import settled
from upq.layers.grid import Grid
from upq.layers.linear import FakeQuantLinear, Latent, fake_quant_layers, replace_module


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        codes: torch.Tensor,
        log_scale: torch.Tensor,
        zero: torch.Tensor | None,
        grid: Grid,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        weight = _weight(codes, log_scale, zero, grid).to(dtype)
        context.save_for_backward(log_scale, weight)
        return weight

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        log_scale, weight = context.saved_tensors
        product = (gradient.float() * weight.float()).view(*log_scale.shape, -1)
        return None, product.sum(-1), None, None, None


def _weight(
    codes: torch.Tensor, log_scale: torch.Tensor, zero: torch.Tensor | None, grid: Grid
) -> torch.Tensor:
    scale, offset = settled(log_scale, zero, grid)
    offset = scale * grid.zero if offset is None else offset
    levels = codes.view(*scale.shape, -1).float()
    return levels.mul_(scale.unsqueeze(-1)).sub_(offset.unsqueeze(-1)).view(codes.shape)


class FixedCodesLinear(FakeQuantLinear):
    """FakeQuantLinear with `codes`, (out, in) uint8, in the place of its weight. One byte a weight, and nothing for its
    gradient. Lies where `layer` does.
    """

    codes: torch.Tensor

    def __init__(self, layer: FakeQuantLinear) -> None:
        latent = layer.state()
        super().__init__(latent, layer.bias, layer.grid)
        scale, offset = layer.grid.stored(latent.scale, latent.zero)
        self.register_buffer("codes", layer.grid.encode(latent.weight, scale, offset))
        self.register_parameter("weight", None)

    def quantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) of the codes at the present scales, differentiable in the scales."""
        return _Scaled.apply(self.codes, self.log_scale, self.zero, self.grid, dtype)

    def state(self) -> Latent:
        """The present state on the layer's own device, its weight where its codes are."""
        log_scale = self.log_scale.detach()
        weight = _weight(self.codes, log_scale, self.zero, self.grid)
        latent = Latent(weight, log_scale.exp(), self.zero, self.transform)
        return FakeQuantLinear(latent, self.bias, self.grid).state()


def fix_codes(student: nn.Module) -> None:
    """Fix the codes of all training-form layers at what they are now; those of a layer that has them fixed stay.

    No more than one layer at a time has both its weight and its codes in memory.
    """
    names = [name for name, _ in fake_quant_layers(student)]
    for name in names:
        layer = student.get_submodule(name)
        if isinstance(layer, FakeQuantLinear) and not isinstance(layer, FixedCodesLinear):
            replace_module(student, name, FixedCodesLinear(layer))
