"""scripts/gpu_check.sh, with stand-ins for Python and nvidia-smi that end as a test wants."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Succeeds, except as the benchmark or the tests that FAILING names; as those of HANGING it does not end by itself.
PYTHON = """#!/bin/sh
for one in $FAILING; do case " $* " in *" $one "*) exit 7 ;; esac; done
for one in $HANGING; do case " $* " in *" $one "*) echo hangs; exec sleep 60 ;; esac; done
"""
#: What the script adds to a part's limit before it ends the part.
GRACE_S = 5


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def gpu_check(
    folder: Path, parts: str, python: str = PYTHON, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The script's call with these parts, interpreter and environment variables; OUT is `out` in the folder."""
    executable(folder / "bin" / "nvidia-smi", "#!/bin/sh\necho no GPU\n")
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(executable(folder / "bin" / "python", python)),
        "OUT": str(folder / "out"),
        "UPQ_RUN": str(folder / "run"),
        "UPQ_WORKERS": "1",
    }
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu_check.sh"), *parts.split()],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def results(folder: Path, first: str) -> dict[str, str]:
    """The texts in the archive of a call whose first part this is, by their files' names."""
    with tarfile.open(folder / "out" / f"results-{first}.tar.gz") as archive:
        files = {one.name: archive.extractfile(one) for one in archive.getmembers()}
        return {
            name.removeprefix("./"): file.read().decode()
            for name, file in files.items()
            if file is not None
        }


@pytest.mark.parametrize(
    ("failing", "parts", "code"),
    [
        ("", "tests kernels decode scale training", 0),
        ("bench.gpu_decode", "tests kernels decode", 1),
        ("pytest bench.gpu_kernels bench.gpu_scale", "tests kernels decode scale", 3),
    ],
)
def test_the_exit_code_says_how_many_parts_failed_and_the_archive_has_them_all(
    tmp_path: Path, failing: str, parts: str, code: int
) -> None:
    done = gpu_check(tmp_path, parts, FAILING=failing)
    assert done.returncode == code, done.stdout + done.stderr
    assert {f"{part}.txt" for part in parts.split()} <= results(tmp_path, "tests").keys()


def test_a_part_that_runs_out_of_its_time_is_said_and_the_next_one_still_runs(
    tmp_path: Path,
) -> None:
    limits = f"kernels={1 - GRACE_S} decode=30"
    done = gpu_check(tmp_path, "kernels decode", HANGING="bench.gpu_kernels", UPQ_LIMITS=limits)
    assert done.returncode == 1, done.stdout + done.stderr
    found = results(tmp_path, "kernels")
    assert found["kernels.txt"] == "hangs\n", "what it had said by then is kept"
    late, next_one = found["seconds.txt"].splitlines()
    assert late.startswith("kernels: exit code 124, "), "that of timeout"
    assert int(late.split()[-2]) < 10, "as soon as its time is over"
    assert next_one.startswith("decode: exit code 0, ")
    assert "decode.txt" in found
    assert late in done.stdout


def test_missing_packages_are_named_before_anything_runs(tmp_path: Path) -> None:
    """The interpreter has no packages but empty ones: all that the script asks for, except for two."""
    script = (ROOT / "scripts" / "gpu_check.sh").read_text(encoding="utf-8")
    needed = re.findall(r'^needed = "([^"]*)"', script, re.MULTILINE)[0].split()
    for name in set(needed) - {"triton", "gguf"}:
        (tmp_path / "site" / name).mkdir(parents=True)
    python = f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} -S "$@"\n'
    done = gpu_check(tmp_path, "kernels", python)
    assert done.returncode == 1
    assert done.stderr.endswith(" lacks triton, gguf: carry them as wheels (WHEELS).\n")
    assert done.stdout == ""
    assert not list((tmp_path / "out").iterdir())
