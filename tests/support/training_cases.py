"""Fake quantization of random weights, by whatever computes it on their device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels.packing import NESTED_GROUP, nested_block
from upq.layers import MOST_STEPS, Grid, TwoLevelGrid
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
    return replace(case, log_scale=agreed(case.log_scale))


def agreed(log_scale: torch.Tensor) -> torch.Tensor:
    """Logarithms of which numpy and torch give the same exponentials, a little below these where they differ."""
    found = log_scale.cpu().clone()
    while (differs := torch.from_numpy(np.exp(found.numpy())) != found.exp()).any():
        found[differs] -= 1e-3
    return found.to(log_scale.device)


def latents(columns: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(log_scale, zero), (7, groups), of two levels of scales: a row with offsets halfway between two steps, rows whose
    scales are tiny or huge, whose zeros are 0, negative, or of both signs and huge, and a usual one.
    """
    generator = torch.Generator().manual_seed(columns)
    groups, block = columns // NESTED_GROUP, nested_block(columns) // NESTED_GROUP
    log_scale = torch.randn(7, groups, generator=generator) - 4
    zero = 2 * torch.randn(7, groups, generator=generator) + 1
    inside = torch.arange(groups) % block
    log_scale[0], zero[0] = 0.0, torch.where(inside == 0, MOST_STEPS, inside - 0.5)
    log_scale[1] -= 40
    log_scale[2] += 20
    zero[3, ::2], zero[3, 1::2] = 0.0, -0.0
    zero[4] = -zero[4].abs()
    zero[5] *= 1e30
    return agreed(log_scale).to(device), zero.to(device)


def check_settled(
    found: tuple[torch.Tensor, torch.Tensor], log_scale: torch.Tensor, zero: torch.Tensor
) -> None:
    """Scales and offsets of two levels against torch's on their device, to the last bit."""
    expected = TwoLevelGrid(2).settled(log_scale.exp(), zero)
    for mine, reference in zip(found, expected, strict=True):
        assert reference is not None
        are_numbers = ~reference.isnan()
        assert torch.equal(~mine.isnan(), are_numbers)
        bits = (values[are_numbers].view(torch.int32) for values in (mine, reference))
        assert torch.equal(*bits)


def check_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Quantized weight and weight gradient to the last bit, sums over a group up to their order."""
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert 0 < int((found[1] == 0).sum()) < found[1].numel(), "clipped and unclipped are there"
    for mine, reference in zip(found[2:], expected[2:], strict=True):
        largest = float(reference.abs().max())
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5 * largest)
