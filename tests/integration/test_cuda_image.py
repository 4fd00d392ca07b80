"""What runs on a borrowed GPU needs only the packages of a plain CUDA image and the wheels that are carried to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "from tests.support import cuda_image; cuda_image.install()\n"
COLLECT = (
    "import pytest, sys; sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', 'tests/gpu']))"
)
MODULES = (
    "upq.quantize",
    "upq.jobs",
    "upq.cli",
    *(f"bench.gpu_{name}" for name in ("kernels", "decode", "scale", "training")),
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process that sees only those packages."""
    return subprocess.run(
        [sys.executable, "-c", INSTALL + code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_for_a_gpu_are_collected() -> None:
    done = run(COLLECT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu_kernels.py" in done.stdout


def test_what_quantizes_and_measures_can_be_imported() -> None:
    done = run("import " + ", ".join(MODULES))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["gradio", "datasets"])
def test_other_packages_are_not_there(module: str) -> None:
    pytest.importorskip(module)
    done = run(f"import importlib.metadata, {module}")
    assert f"No module named '{module}'" in done.stderr
    assert (
        "PackageNotFoundError"
        in run(f"import importlib.metadata as m; m.version('{module}')").stderr
    )
