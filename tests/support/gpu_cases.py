"""How much of its cases a test runs on the GPU that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

IS_SIMULATED = (
    torch.cuda.is_available() and torch.version.cuda is None and torch.version.hip is None
)
Cases = TypeVar("Cases", bound=Sequence[object])


def sized(compiled: Cases, simulated: Cases) -> Cases:
    """The cases for compiled kernels, or those few that a simulated GPU interprets in seconds."""
    return simulated if IS_SIMULATED else compiled
