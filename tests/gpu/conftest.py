"""What tests for a GPU share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.support.gpu_cases import IS_SIMULATED
from tests.support.simulated_gpu import gpu


@pytest.fixture(autouse=True)
def kernels_under_test_are_interpreted(request: pytest.FixtureRequest) -> Iterator[None]:
    """A simulated GPU interprets the kernels of a test with the mark `kernels`, also where they have stand-ins."""
    is_about_kernels = request.node.get_closest_marker("kernels") is not None
    with gpu.interpreted() if IS_SIMULATED and is_about_kernels else nullcontext():
        yield
