"""scripts/gpu_check.sh, with stand-ins for Python and nvidia-smi that end as a test wants."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Succeeds, except as the benchmark or the tests that FAILING names.
PYTHON = '#!/bin/sh\nfor one in $FAILING; do case " $* " in *" $one "*) exit 7 ;; esac; done\n'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


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
    executable(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho no GPU\n")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(executable(tmp_path / "bin" / "python", PYTHON)),
        "FAILING": failing,
        "OUT": str(tmp_path / "out"),
        "UPQ_RUN": str(tmp_path / "run"),
        "UPQ_WORKERS": "1",
    }
    done = subprocess.run(
        [str(ROOT / "scripts" / "gpu_check.sh"), *parts.split()],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    with tarfile.open(tmp_path / "out" / "results-tests.tar.gz") as archive:
        names = set(archive.getnames())
    assert {f"./{part}.txt" for part in parts.split()} <= names
