"""What a clone brings: little enough to download, and nothing twice. Reads the list of files that git keeps."""

from __future__ import annotations

import hashlib
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: The shipped models take 35 MB of it.
MAX_BYTES = 42_000_000


@cache
def kept_files() -> list[Path]:
    command = ["git", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("this copy is not a git checkout, so there is no list of its files")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_a_clone_is_small() -> None:
    size = sum(path.stat().st_size for path in kept_files())
    assert size < MAX_BYTES, f"{size / 1e6:.1f} MB"


def test_no_file_is_kept_twice() -> None:
    same: dict[str, list[str]] = defaultdict(list)
    for path in kept_files():
        if path.stat().st_size:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            same[digest].append(path.relative_to(ROOT).as_posix())
    twice = [names for names in same.values() if len(names) > 1]
    assert not twice, twice
