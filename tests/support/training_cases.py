"""Fake quantization of random weights, by whatever computes it on their device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from upq.layers import Grid
from upq.layers.fake import fake_quantize


@dataclass(frozen=True)
class Case:
    """A weight (out, in) of which some is clipped, and the gradient of a loss by its quantized form."""

    grid: Grid
    weight: torch.Tensor
    log_scale: torch.Tensor
    zero: torch.Tensor | None
    upstream: torch.Tensor

    @staticmethod
    def random(
        grid: Grid, shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu"
    ) -> Case:
        """shape: rows, columns and columns that share a scale."""
        rows, columns, group = shape
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(rows, columns, generator=generator)
        scale, zero = grid.fit(weight, group)
        if zero is not None and grid.trains_zeros:
            zero = zero + 0.3 * torch.randn(zero.shape, generator=generator)
        zero = None if zero is None else zero.to(device)
        upstream = torch.randn(rows, columns, generator=generator).to(device, dtype)
        return Case(grid, weight.to(device), (scale * 0.7).log().to(device), zero, upstream)

    def results(self) -> list[torch.Tensor]:
        """The quantized weight and the gradients by weight, log_scale and zero."""
        weight, log_scale = (one.clone().requires_grad_() for one in (self.weight, self.log_scale))
        zero = None if self.zero is None else self.zero.clone().requires_grad_()
        quantized = fake_quantize(weight, log_scale, self.grid, self.upstream.dtype, zero)
        quantized.backward(self.upstream)
        gradients = [one.grad for one in (weight, log_scale, zero) if one is not None]
        return [quantized.detach(), *(gradient for gradient in gradients if gradient is not None)]


def interpretable(case: Case) -> Case:
    """The case, its scales changed where numpy, and so the interpreter, rounds exponentials otherwise than torch."""
    log_scale = case.log_scale.cpu().clone()
    while (differs := torch.from_numpy(np.exp(log_scale.numpy())) != log_scale.exp()).any():
        log_scale[differs] -= 1e-3
    return replace(case, log_scale=log_scale.to(case.log_scale.device))


def check_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Quantized weight and weight gradient to the last bit, sums over a group up to their order."""
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert 0 < int((found[1] == 0).sum()) < found[1].numel(), "clipped and unclipped are there"
    for mine, reference in zip(found[2:], expected[2:], strict=True):
        largest = float(reference.abs().max())
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5 * largest)
