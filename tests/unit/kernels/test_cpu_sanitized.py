"""The tests of the C kernels and of the decoder once more, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1]
CHECKED = (
    "kernels/test_cpu_kernels.py",
    "kernels/test_cpu_grids.py",
    "decode/test_native.py",
    "decode/test_native_grids.py",
    "decode/test_native_transforms.py",
)
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1"


def runtime(name: str) -> str:
    """The sanitizer's library, which must be loaded before anything else."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip(f"this compiler has no {name}")
    return found


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
@pytest.mark.timeout(600)
def test_the_kernels_touch_nothing_that_is_not_theirs(tmp_path: Path) -> None:
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",  # Python itself leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "UPQ_TEST_CFLAGS": FLAGS,
        "UPQ_CACHE": str(tmp_path),
        "CC": "gcc",
    }
    tests = [str(UNIT / name) for name in CHECKED]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-m", "not slow", *tests]
    done = subprocess.run(
        command, env=environment, cwd=UNIT.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert list((tmp_path / "kernels").glob("*.so")), "nothing was compiled with the sanitizers"
