"""Compiling the kernels: once, safely beside others, and a plain sentence where it cannot be done."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.cpu import build, panels

LOAD = "from kernels.cpu import build; build.load('portable C')"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and nothing loaded before."""
    monkeypatch.setenv("UPQ_CACHE", str(tmp_path))
    for cached in (build.load, build.instruction_set, panels.library):
        cached.cache_clear()
    yield tmp_path / "kernels"
    for cached in (build.load, build.instruction_set, panels.library):
        cached.cache_clear()


def test_a_second_start_compiles_nothing(fresh: Path) -> None:
    build.load()
    [made] = fresh.glob("*.so")
    before = made.stat().st_mtime_ns
    build.load.cache_clear()
    build.load()
    assert [path.stat().st_mtime_ns for path in fresh.glob("*.so")] == [before]


def test_processes_that_start_together_make_one_library(fresh: Path) -> None:
    starts = [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(3)]
    assert [one.wait(timeout=120) for one in starts] == [0, 0, 0]
    assert len(list(fresh.glob("*.so"))) == 1
    assert not [path for path in fresh.iterdir() if path.is_dir()], "no half-made library is left"


def test_changed_sources_are_another_library(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load("portable C")
    sources = tmp_path / "csrc"
    sources.mkdir()
    for path in build.SOURCES.iterdir():
        (sources / path.name).write_bytes(path.read_bytes())
    (sources / "matrix.h").write_text((sources / "matrix.h").read_text() + "\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    build.load.cache_clear()
    build.load("portable C")
    assert len(list(fresh.glob("*.so"))) == 2


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_torch_multiplies_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(build.BuildError, match="no C compiler"):
        build.load()
    assert panels.library() is None
    assert "There is no C compiler" in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails_is_quoted_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'x.c:1: error: something is wrong' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(build.BuildError, match="error: something is wrong"):
        build.load()


def test_a_cache_that_cannot_be_written_is_a_sentence(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPQ_CACHE", "/proc/nowhere")
    with pytest.raises(build.BuildError, match="cannot be stored or loaded"):
        build.load()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni", "AVX-512 VNNI"),
        ("avx2 fma f16c avx_vnni", "AVX-VNNI"),
        ("avx2 fma f16c avx512f", "AVX2"),
        ("sse2 avx", "portable C"),
    ],
)
def test_the_instruction_set_follows_the_processor(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(build, "CPU_INFO", info)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    assert build.processor_sets()[0] == expected
    assert build.processor_sets()[-1] == "portable C"


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the sets are those of x86")
def test_a_compiler_that_is_too_old_for_the_best_set_compiles_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, old = tmp_path / "cpuinfo", tmp_path / "old-cc"
    needed = {flag for flags, _ in build.INSTRUCTION_SETS.values() for flag in flags}
    info.write_text(f"flags : {' '.join(needed)}\n")
    monkeypatch.setattr(build, "CPU_INFO", info)
    old.write_text(
        '#!/bin/sh\ncase "$*" in *vnni*) echo "error: unrecognized option" >&2; exit 1;; esac\n'
        'exec gcc "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    assert build.instruction_set() == "AVX2"
    assert build.load()._name == build.load("AVX2")._name
