"""RMS norms of a model in Triton while it trains: a norm is a dozen operations of torch, and each of them a launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

#: Rows on which a norm is compared with the formula of the kernels.
TRIAL_ROWS = 4


@contextmanager
def fused_norms(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Compute the RMS norms of model, whose activations have this dtype, by kernels.gpu.norms.

    Norms that compute something else or that the CPU lends (upq.models.placement), or all where Triton is missing, stay
    as they are.
    """
    changed = []
    try:
        from kernels.gpu import norms  # noqa: PLC0415  only where there is a GPU
    except ImportError:
        yield
        return
    here = next(model.parameters()).device
    for norm in model.modules():
        if _is_rms_norm(norm, dtype, norms.MAX_WIDTH, here):
            norm.forward = partial(_forward, norm, norms.rms_norm)
            changed.append(norm)
    try:
        yield
    finally:
        for norm in changed:
            del norm.forward


def _forward(norm: Any, rms_norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    base, gain = norm.weight, None
    if parametrize.is_parametrized(norm, "weight"):
        trained = norm.parametrizations["weight"]
        base, gain = trained[0].base, trained.original
    return rms_norm(hidden, base, gain, norm.variance_epsilon)


@torch.no_grad()
def _is_rms_norm(norm: Any, dtype: torch.dtype, widest: int, here: torch.device) -> bool:
    """Whether a module is on `here` and computes the formula of the kernels: some models add 1 to the weight,
    or round elsewhere.
    """
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if epsilon is None or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return False
    if weight.dtype != dtype or weight.device != here or len(weight) > widest:
        return False
    trial = torch.linspace(-3, 4, TRIAL_ROWS * len(weight), device=weight.device).to(dtype)
    trial = trial.view(TRIAL_ROWS, -1)
    values = trial.float()
    normal = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon)
    return torch.equal(norm(trial), weight * normal.to(dtype))
