"""Which shape of the Triton product is fastest for a weight: measured on first use, then remembered on disk.

A few configurations are timed, cold, for each weight shape and number of columns. The file is named after GPU,
Triton version and kernel source, so that a change of any of them measures anew. Nothing is measured while a CUDA graph
is being captured; then a remembered or a default configuration serves, and the engines run once before they capture.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton import knobs
from triton.runtime.errors import OutOfResources, PTXASError

from kernels.cpu.build import cache_folder

SOURCE = Path(__file__).with_name("products.py")


class Config(NamedTuple):
    """How one product is cut: the parameters of kernels.gpu.products.matmul_kernel with these names."""

    tile: int
    slices: int
    unroll: int
    stages: int


#: For each number of columns what is worth timing; the first is the default. Wide tiles take the fewest instructions,
#: narrow ones give small weights enough programs.
CANDIDATES: dict[int, tuple[Config, ...]] = {
    8: (
        Config(32, 4, 1, 4),
        Config(16, 4, 2, 4),
        Config(16, 8, 1, 4),
        Config(32, 8, 1, 3),
        Config(64, 4, 1, 4),
        Config(64, 8, 1, 3),
    ),
    16: (
        Config(32, 4, 1, 3),
        Config(16, 8, 1, 3),
        Config(32, 8, 1, 3),
        Config(64, 4, 1, 3),
    ),
    32: (Config(32, 4, 1, 3), Config(16, 8, 1, 2), Config(32, 8, 1, 2), Config(64, 4, 1, 2)),
    64: (Config(32, 4, 1, 2), Config(16, 4, 1, 3), Config(16, 8, 1, 2), Config(32, 2, 1, 3)),
}
MAX_ROWS = max(CANDIDATES)
TIMINGS = 9
FLOOD_BYTES = 2**28  # more than any GPU's cache
_lock = threading.Lock()


def columns_for(rows: int) -> int:
    """Columns of the kernel that takes `rows` rows of inputs, 1 to MAX_ROWS."""
    return next(columns for columns in CANDIDATES if rows <= columns)


def choose(
    device: torch.device, columns: int, problem: str, run: Callable[[Config], None]
) -> Config:
    """The configuration for `problem`, a text that names all that the best one depends on but GPU and kernel.

    run: executes the product with a configuration. It is timed where nothing is remembered and timing is possible.
    """
    default = CANDIDATES[columns][0]
    if device.type != "cuda" or knobs.runtime.interpret:
        return default
    path = _file(torch.cuda.get_device_name(device))
    known = _remembered(path)
    if problem not in known:
        if torch.cuda.is_current_stream_capturing():
            return default
        with _lock:
            if problem not in known:
                known[problem] = min(
                    CANDIDATES[columns], key=lambda config: _milliseconds(run, config)
                )
                _remember(path, known)
    return known[problem]


def _milliseconds(run: Callable[[Config], None], config: Config) -> float:
    """Median time of a run with a cold cache; infinite if the GPU has not the memory or registers for it.

    Waits for its own stream only, so that another thread may be capturing a graph meanwhile.
    """
    try:
        run(config)
    except (OutOfResources, PTXASError):
        return float("inf")
    flood = torch.empty(FLOOD_BYTES, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(TIMINGS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flood.zero_()  # empties the cache, and keeps the GPU busy until the launch has reached it
        start.record()
        run(config)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


@functools.cache
def _file(gpu: str) -> Path:
    source = hashlib.sha256(SOURCE.read_bytes() + repr(CANDIDATES).encode()).hexdigest()[:12]
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return cache_folder() / f"triton-{triton.__version__}-{name}-{source}.json"


@functools.cache
def _remembered(path: Path) -> dict[str, Config]:
    """What the file holds, in a dictionary that all callers share. An unreadable file counts as empty."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {problem: Config(*values) for problem, values in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(path: Path, known: dict[str, Config]) -> None:
    """Write the file whole or not at all; a folder that cannot be written costs only the memory of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=0)
        os.replace(temporary, path)
    except OSError:
        return
