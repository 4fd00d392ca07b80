"""Compiling the C kernels on first use, for the processor that is here, into a cache that later starts share.

A library is named after its sources, flags and compiler, so a changed one is another file. Several processes may
start at once: one compiles, the others wait for it. Without a compiler the caller falls back to torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import platformdirs

SOURCES = Path(__file__).parent / "csrc"
CPU_INFO = Path("/proc/cpuinfo")
COMPILE_SECONDS = 120
#: Instruction sets, the best first: (processor flags needed, compiler flags).
INSTRUCTION_SETS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "AVX-512 VNNI": (
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"}),
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"),
    ),
    "AVX-VNNI": (
        frozenset({"avx2", "avx_vnni", "fma", "f16c"}),
        ("-mavx2", "-mavxvnni", "-mfma", "-mf16c"),
    ),
    "AVX2": (frozenset({"avx2", "fma", "f16c"}), ("-mavx2", "-mfma", "-mf16c")),
    "portable C": (frozenset(), ()),
}
# Results must not depend on how a compiler fuses products, nor on errno; NaN and infinity stay what they are.
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)

_logger = logging.getLogger(__name__)


class BuildError(Exception):
    """The kernels cannot be had here; the text says why, in one sentence."""


def processor_sets() -> list[str]:
    """Those of INSTRUCTION_SETS that this processor has, the best first."""
    flags: set[str] = set()
    if CPU_INFO.exists() and platform.machine() == "x86_64":
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                break
    return [name for name, (needed, _) in INSTRUCTION_SETS.items() if needed <= flags]


@lru_cache
def instruction_set() -> str:
    """The best that this processor has and the compiler knows; where nothing can be compiled, that it has."""
    found = processor_sets()
    for name in found:
        try:
            load(name)
        except BuildError as error:
            _logger.info("No kernels for %s. %s", name, error)
        else:
            return name
    return found[0]


def cache_folder() -> Path:
    """Where compiled kernels are kept: the folder UPQ_CACHE names, else the platform's cache."""
    return (
        Path(os.environ.get("UPQ_CACHE") or platformdirs.user_cache_dir("upq-studio")) / "kernels"
    )


@lru_cache
def load(name: str | None = None, extra_flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The kernels for an instruction set (None: `instruction_set`), compiled if need be. Raises BuildError."""
    name = name or instruction_set()
    compiler = _compiler()
    flags = (*FLAGS, *INSTRUCTION_SETS[name][1], *extra_flags)
    try:
        sources = sorted(SOURCES.iterdir())
        library = cached_library(compiler, flags, sources)
        compiled = [str(path) for path in sources if path.suffix == ".c"]
        compile_once([compiler, *flags, *compiled, "-lm"], library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"The compiled kernels cannot be stored or loaded: {error}") from error


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return path
    raise BuildError("There is no C compiler (cc, gcc or clang) on this machine.")


def cached_library(compiler: str, flags: Sequence[str], sources: Sequence[Path]) -> Path:
    """Where the library of these sources is kept, whether or not it is there yet. Raises OSError."""
    digest = hashlib.sha256(repr((tuple(flags), platform.machine())).encode())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout)
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{digest.hexdigest()[:24]}.so"


def compile_once(command: Sequence[str], library: Path) -> None:
    """Run a compiler's command, which names no output, unless its library is there. Raises BuildError, OSError."""
    if library.exists():
        return
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        if not library.exists():
            _compile(command, library)


def _compile(command: Sequence[str], library: Path) -> None:
    """Compile beside the cached file and move it there whole."""
    compiler = command[0]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                [*command, "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"{compiler} took more than {COMPILE_SECONDS} s.") from error
        if done.returncode:
            first = next(
                (line for line in done.stderr.splitlines() if "error" in line), "no message"
            )
            raise BuildError(f"{compiler} failed: {first}")
        os.replace(made, library)
