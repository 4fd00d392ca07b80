"""The simulated GPU's C++ half, compiled on first use and loaded into this process before torch is imported.

Torch looks for a GPU's hooks once, while it is imported, so this module must not import it. The cache is that of the C
kernels; a library is named after its source, the compiler and the version of torch.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from kernels.cpu import build

SOURCE = Path(__file__).with_name("device.cpp")
#: Libraries of torch that it is linked with.
NAMES = ("c10", "torch_cpu")
#: Functions that return a number; the others return nothing.
COUNTERS = ("simulated_operators", "simulated_allocated", "simulated_peak")


def _torch() -> Path:
    """The folder of torch, which is not imported."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise build.BuildError("The simulated GPU needs torch, which is not installed.")
    return Path(found.origin).parent


def unavailable() -> str:
    """Why there can be no simulated GPU here, as a sentence; empty where there can be one."""
    if (_torch() / "lib" / "libtorch_cuda.so").exists():
        return "The simulated GPU needs a build of torch for CPUs; this one is for GPUs."
    if _compiler() is None:
        return "The simulated GPU needs a C++ compiler (g++ or c++), and there is none on this machine."
    return ""


def _compiler() -> str | None:
    found = (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++") if name)
    return next(filter(None, found), None)


@functools.cache
def load() -> ctypes.CDLL:
    """The library, compiled if need be. Raises BuildError where it cannot be compiled, and where torch was first."""
    if reason := unavailable():
        raise build.BuildError(reason)
    if "torch" in sys.modules:
        raise build.BuildError("The simulated GPU comes too late: torch is imported already.")
    compiler, folder = str(_compiler()), _torch()
    flags = [
        "-O1",
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{folder / 'include'}",
        f"-I{folder / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
    ]
    linked = [f"-L{folder / 'lib'}", *(f"-l{name}" for name in NAMES)]
    path = build.cached_library(compiler, [*flags, importlib.metadata.version("torch")], [SOURCE])
    build.compile_once([compiler, *flags, str(SOURCE), *linked], path)
    for name in NAMES:
        ctypes.CDLL(str(folder / "lib" / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    for name in COUNTERS:
        getattr(library, name).restype = ctypes.c_int64
    library.simulated_count.argtypes = [ctypes.c_int64]
    return library
