"""Scales and minimums of two levels, fitted again to the codes that coordinate descent has found.

With E = W - Q and H as in upq.training.ldlq, moving a group's scale by a and its minimum by b, its codes c as they
are, lowers tr(E H E^T) by 2 (c . E H) a - 2 (1 . E H) b - (c H c) a^2 + 2 (c H 1) a b - (1 H 1) b^2. For each of the
few steps that the scale can take, the best step of the minimum is the nearest to the vertex of a parabola.
"""

from __future__ import annotations

import torch

from upq.layers import MOST_STEPS, Steps


def refitted_steps(
    steps: Steps, group: int, rounded: torch.Tensor, pull: torch.Tensor, corner: torch.Tensor
) -> torch.Tensor:
    """The group's inputs at its best steps, which are written into `steps`: (inputs, out), as rounded.

    rounded: the inputs as they are, levels; pull: of (W - Q) H, both (inputs, out); corner: of H, (inputs, inputs).
    The largest steps of a block stay, and with them its units.
    """
    scale, minimum, scale_steps, minimum_steps = steps.group(group)
    codes = ((rounded + minimum * minimum_steps) / (scale * scale_steps)).round_()
    by_codes, by_ones = (codes * pull).sum(0), pull.sum(0)
    reached = corner @ codes
    curved, mixed, flat = (codes * reached).sum(0), reached.sum(0), corner.sum()
    before, below = scale_steps.clone(), minimum_steps.clone()
    gain = torch.zeros_like(scale)
    for step in range(1, MOST_STEPS + 1):
        tried = torch.where(before == MOST_STEPS, before, step)
        up = (tried - before) * scale
        vertex = (mixed * up - by_ones) / flat
        lowered = ((vertex / minimum).round_() + below).clamp_(0, MOST_STEPS)
        lowered = torch.where(below == MOST_STEPS, below, lowered)
        down = (lowered - below) * minimum
        gained = 2 * (by_codes * up - by_ones * down + mixed * up * down)
        gained -= curved * up.square() + flat * down.square()
        better = gained > gain
        gain = torch.where(better, gained, gain)
        scale_steps.copy_(torch.where(better, tried, scale_steps))
        minimum_steps.copy_(torch.where(better, lowered, minimum_steps))
    return codes * (scale * scale_steps) - minimum * minimum_steps
