"""New Python environments, with nothing in them but what a test installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def constrained(name: str) -> str:
    """The version of a package that the tests run with."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def new_python(folder: Path) -> Path:
    """The Python of a new environment; 3.12 where there is one, as Spaces and images for a GPU have it."""
    base = next(name for name in ("python3.12", sys.executable) if _runs(name))
    subprocess.run([base, "-m", "venv", str(folder)], check=True, timeout=300)
    return folder / "bin" / "python"


def _runs(name: str) -> bool:
    """Whether there is such a program and it works; one on PATH may be a shim of a version that is not chosen."""
    found = shutil.which(name)
    return bool(found) and not subprocess.run([found, "-c", ""], capture_output=True).returncode


def install(python: Path, *arguments: str, is_needed: bool = True) -> None:
    """Install packages there; skips the test where they are needed and cannot be had."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments], check=False, timeout=1800, capture_output=True, text=True
    )
    if done.returncode and is_needed:
        pytest.skip(f"the packages cannot be had here: {done.stderr[-300:]}")
