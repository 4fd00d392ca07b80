"""What a run is executed on: the machine, the versions of the libraries that compute, the commit of this checkout."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import upq
from kernels.cpu.build import CPU_INFO, instruction_set

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers")
GIT_TIMEOUT_S = 10


def environment() -> dict[str, Any]:
    """What a run is executed on: commit, versions and machine, as JSON-able facts that hold for the whole process."""
    return {"commit": commit(), "versions": versions(), "machine": machine()}


def commit() -> str:
    """The checkout's commit, with "+" behind it where files differ from it; "" outside of a checkout."""
    if not (ROOT / ".git").exists():
        return ""  # git would look in the folders above
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Name -> version of this program and of the libraries that compute."""
    return {"upq": upq.__version__, **{name: metadata.version(name) for name in PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, instruction set of the kernels, memory in bytes, and the GPU."""
    gpu = torch.cuda.get_device_properties() if torch.cuda.is_available() else None
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "instructions": instruction_set(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu.name if gpu else None,
        "gpu_bytes": gpu.total_memory if gpu else None,
    }


def processor() -> str:
    """The processor's model name."""
    lines = CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
