"""`python -m upq doctor`: what this machine has for the work, in a few lines."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

from kernels.cpu.build import BuildError, load
from upq.evaluation import instruction_types
from upq.machine import machine, versions
from upq.units import size


def facts(folder: Path) -> list[str]:
    """A line each on the versions, the device, the kernels, the checks and the data folder."""
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"Versions     {named}",
        f"Device       {_device()}",
        f"CPU kernels  {_cpu_kernels()}",
        f"GPU kernels  {_gpu_kernels()}",
        f"Checks       {_checks()}",
        f"Data folder  {folder}, {size(_used(folder))} used, {size(_free(folder))} free",
    ]


def _device() -> str:
    found = machine()
    memory = size(found["memory_bytes"])
    processor = f"{found['processor']}, {found['cores']} cores, {memory}"
    if found["gpu"] is None:
        return f"{processor}; no GPU that torch sees"
    return f"{found['gpu']}, {size(found['gpu_bytes'])}, beside {processor}"


def _cpu_kernels() -> str:
    try:
        load()
    except BuildError as error:
        return f"not compiled, so torch multiplies, more slowly: {error}"
    return f"compiled, {machine()['instructions']}"


def _gpu_kernels() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; they are not needed without an NVIDIA GPU"
    return "Triton is installed" + ("" if machine()["gpu"] else ", unused without a GPU")


def _checks() -> str:
    types = instruction_types()
    missing: dict[str, int] = {}
    for reason in filter(None, types.values()):
        missing[reason] = missing.get(reason, 0) + 1
    judged = len(types) - sum(missing.values())
    words = [f"{count} not: {reason}" for reason, count in missing.items()]
    return "; ".join([f"{judged} of {len(types)} instruction types can be judged", *words])


def _used(folder: Path) -> int:
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.lstat().st_size
        except OSError:
            continue  # gone meanwhile


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
