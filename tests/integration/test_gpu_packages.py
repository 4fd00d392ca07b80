"""The versions of the image for a GPU that was lent, older than those of constraints.txt, in a new environment.

torch is the one of the tests: its wheel for a GPU is too large to be downloaded for a test.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_cuda_image import MODULES
from tests.support.cuda_image import IMAGE, carried
from tests.support.environments import ROOT, constrained, install, new_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
#: What the image has; the interpreter of this Triton cannot use a newer numpy.
VERSIONS = {"transformers": "==5.17.*", "triton": "==3.6.*", "numpy": "<2.3"}
#: What torch requires, whose own requirements would choose another Triton.
OF_TORCH = ("sympy", "networkx", "jinja2", "fsspec", "filelock", "setuptools")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inside = new_python(tmp_path_factory.mktemp("image") / "environment")
    install(inside, "--no-deps", f"torch=={constrained('torch')}")
    others = (set(IMAGE) | carried()) - {"torch", "triton", "pip", *VERSIONS}
    chosen = [name + wanted for name, wanted in VERSIONS.items() if name != "triton"]
    install(inside, *sorted(others), *chosen, *OF_TORCH)
    install(inside, "--no-deps", f"triton{VERSIONS['triton']}")
    return inside


def run(python: Path, *arguments: str) -> str:
    """What Python prints, which has to succeed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=kept | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_versions_are_those_of_the_image(python: Path) -> None:
    code = "import torch, triton, transformers; print(triton.__version__, transformers.__version__)"
    triton, transformers = run(python, "-c", code).split()
    assert triton.startswith("3.6.")
    assert transformers.startswith("5.17.")


def test_everything_is_collected_and_imported(python: Path) -> None:
    found = run(python, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests/gpu")
    assert "test_gpu_kernels.py" in found
    run(python, "-c", "import " + ", ".join(MODULES))


@pytest.mark.parametrize("name", ["triton_norm", "triton_training"])
def test_kernels_compute_the_same_under_this_interpreter(python: Path, name: str) -> None:
    path = f"tests/unit/kernels/test_{name}.py"
    assert " passed" in run(python, "-m", "pytest", "-q", "-W", "default", path)
