"""A data folder on a disk that is full, or that may not be written to. The disk is a small real file system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import worker_process

from upq.context import STAGES

SMALL = "size=64m"


def on_own_disk(place: Path, commands: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a mount namespace of their own, where `place` is a small file system and ends with them."""
    place.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {SMALL} tmpfs "$0" && {{ {commands} ; }}'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(place), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(worker_process.ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=worker_process.ROOT,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    if (
        shutil.which("unshare") is None
        or on_own_disk(tmp_path_factory.mktemp("disk"), "true").returncode
    ):
        pytest.skip("this machine lets nobody mount a file system of his own")


@pytest.mark.slow
@pytest.mark.chaos
def test_a_disk_that_is_full_in_any_stage_is_one_sentence_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    script = str(Path(worker_process.__file__).with_name("disk_process.py"))
    result = on_own_disk(
        tmp_path / "data ü", '"$1" "$2" "$0" "$3"', sys.executable, script, str(tiny_model_dir)
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert list(found) == list(STAGES)
    for stage, outcome in found.items():
        assert outcome["reached"], stage
        said = outcome["said"]
        assert said.startswith("disk_full: "), (stage, said)
        assert said.count(".") == 1, (stage, said)
        assert (outcome["state"], outcome["same"], outcome["kept"], outcome["doctor"]) == (
            "done",
            True,
            True,
            [],
        ), (stage, outcome)


@pytest.mark.parametrize("has_database", [False, True])
@pytest.mark.parametrize("program", ["-m upq --data-dir {} list", "app.py --data-dir {} --port 0"])
def test_a_folder_that_may_not_be_written_to_is_one_sentence(
    tmp_path: Path, program: str, has_database: bool
) -> None:
    make = '"$1" -m upq --data-dir "$0" list >&2 && ' if has_database else ""
    ask = '"$1" ' + program.format('"$0"')
    result = on_own_disk(
        tmp_path / "data ü", f'{make} mount -o remount,ro "$0" && {ask}', sys.executable
    )
    assert result.returncode in (1, 2)
    said = result.stderr.strip().splitlines()[-1]
    assert said.startswith("The data folder ")
    assert said.endswith(
        "cannot be created or written to. Choose another one with --data-dir or UPQ_HOME."
    )
    assert "Traceback" not in result.stderr
