"""A pytest plugin under which tests that need a GPU get a simulated one, in one process (without xdist).

python -m pytest -p tests.support.simulated_gpu.plugin -m gpu tests/gpu

It has to be named on the command line, because its library is loaded before a conftest imports torch.
"""

from __future__ import annotations

import pytest

from tests.support.simulated_gpu import library


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Give torch its GPU before anything can ask for one."""
    if not library.unavailable():
        library.load()
        from tests.support.simulated_gpu import gpu  # noqa: PLC0415  it imports torch

        gpu.install()


def pytest_report_header() -> str:
    return library.unavailable() or "GPU: simulated"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip every test where there can be no simulated GPU, and say why."""
    if reason := library.unavailable():
        pytest.skip(reason)
