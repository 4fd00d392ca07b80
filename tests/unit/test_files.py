"""Committed folders are complete or absent, damage is seen, and text and names come out safe."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upq.files import (
    MANIFEST,
    STAGING_PREFIX,
    clean_text,
    commit_dir,
    commit_file,
    decoded,
    file_problem,
    remove_dir,
    sweep,
    verify_dir,
    write_bytes_atomic,
)

ROOT = Path(__file__).resolve().parents[2]
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def write_two_files(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (folder / "nested").mkdir()
    (folder / "nested" / "ü name.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    commit_dir(tmp_path / "step-1", write_two_files)
    return tmp_path / "step-1"


def test_a_committed_folder_verifies_and_leaves_nothing_beside_it(committed: Path) -> None:
    assert verify_dir(committed) == []
    assert [path.name for path in committed.parent.iterdir()] == ["step-1"]


def test_the_manifest_is_read_by_sha256sum(committed: Path) -> None:
    subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST],
        cwd=committed,
        check=True,
        capture_output=True,
    )


def test_a_flipped_bit_is_reported_with_the_files_name(committed: Path) -> None:
    data = bytearray((committed / "weights.bin").read_bytes())
    data[1000] ^= 1
    (committed / "weights.bin").write_bytes(data)
    (problem,) = verify_dir(committed)
    assert problem.startswith("weights.bin is damaged: sha256 is ")


def test_a_missing_an_extra_and_a_shortened_file_are_reported(committed: Path) -> None:
    (committed / "nested" / "ü name.json").unlink()
    (committed / "extra").write_bytes(b"")
    os.truncate(committed / "weights.bin", 10)
    problems = verify_dir(committed)
    assert [problem.split(" is ")[0] for problem in problems] == [
        "nested/ü name.json",
        "extra",
        "weights.bin",
    ]


@pytest.mark.parametrize("manifest", [None, b"", b"\xff\xfe", b"not a digest\n"])
def test_a_folder_without_a_sound_manifest_is_not_good(
    committed: Path, manifest: bytes | None
) -> None:
    (committed / MANIFEST).unlink()
    if manifest is not None:
        (committed / MANIFEST).write_bytes(manifest)
    assert verify_dir(committed) != []


def test_an_absent_folder_is_reported_and_not_raised(tmp_path: Path) -> None:
    assert verify_dir(tmp_path / "nothing") != []


def test_a_writer_that_fails_leaves_the_old_folder_and_no_staging(committed: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        commit_dir(committed, fail)
    assert verify_dir(committed) == []
    assert [path.name for path in committed.parent.iterdir()] == ["step-1"]


def test_a_second_commit_replaces_the_folder(committed: Path) -> None:
    commit_dir(committed, lambda folder: (folder / "new").touch())
    assert verify_dir(committed) == []
    assert sorted(path.name for path in committed.iterdir()) == [MANIFEST, "new"]


def test_sweep_removes_only_what_a_killed_writer_left(committed: Path) -> None:
    parent = committed.parent
    (parent / f"{STAGING_PREFIX}dir" / "deep").mkdir(parents=True)
    (parent / f"{STAGING_PREFIX}file").write_bytes(b"x")
    sweep(parent)
    assert [path.name for path in parent.iterdir()] == ["step-1"]
    sweep(parent / "absent")


def test_sweep_leaves_what_is_being_written(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        sweep(tmp_path)
        assert (folder / "half").exists()

    commit_dir(tmp_path / "made", write)
    commit_file(tmp_path / "one", lambda file: (file.write_bytes(b"x"), sweep(tmp_path)))
    assert verify_dir(tmp_path / "made") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "one"]


def test_remove_dir_takes_the_folder_away_and_accepts_an_absent_one(committed: Path) -> None:
    remove_dir(committed)
    remove_dir(committed)
    assert list(committed.parent.iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from upq import files

def kill_at(countdown):
    def hook(event, _):
        countdown[0] -= event.startswith(("open", "os.", "shutil.", "tempfile."))
        if countdown[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def write(folder):
    (folder / "a").write_bytes(b"new" * 1000)

final, count = Path(sys.argv[1]), int(sys.argv[2])
children = []
for n in range(1, count):
    pid = os.fork()
    if pid == 0:
        kill_at([n])
        files.commit_dir(final, write)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    state = files.verify_dir(final) if final.exists() else ["absent"]
    print(os.WIFSIGNALED(status), final.exists(), state == [])
    files.sweep(final.parent)
    left = [path.name for path in final.parent.iterdir()]
    assert left in ([], [final.name]), left
    if final.exists() and (final / "a").read_bytes()[:3] == b"new":
        files.remove_dir(final)
    if not final.exists():
        files.commit_dir(final, lambda folder: (folder / "a").write_bytes(b"old"))
"""


def test_a_kill_at_any_file_operation_leaves_a_whole_folder_or_none(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "step"), "40"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    outcomes = [
        tuple(word == "True" for word in line.split()) for line in result.stdout.split("\n")[:-1]
    ]
    killed = [outcome for outcome in outcomes if outcome[0]]
    assert len(killed) > 10, "the kills come before the commit is over"
    assert len(killed) < len(outcomes), "the last ones come after it"
    assert all(good for _, exists, good in outcomes if exists)


def test_write_bytes_atomic_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "new" / "x.json", b"one")
    write_bytes_atomic(tmp_path / "new" / "x.json", b"two")
    assert (tmp_path / "new" / "x.json").read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(b"")
    write_bytes_atomic(tmp_path / "x", b"one")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "x", b"old")
    code = (
        "import resource, sys; from pathlib import Path; from upq.files import write_bytes_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_bytes_atomic(Path(sys.argv[1]), b'new' * 1000)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OSError: [Errno 27]" in result.stderr
    assert result.returncode != -signal.SIGXFSZ
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@given(ANY_TEXT)
def test_clean_text_is_utf8_without_controls_and_cleaning_twice_changes_nothing(text: str) -> None:
    clean = clean_text(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert not any(c < " " and c not in "\n\t" for c in clean)
    assert clean_text(clean) == clean


def test_clean_text_keeps_what_people_write() -> None:
    text = "Grüße, 你好 👋\n\tعربي"
    assert clean_text(text) == text
    assert clean_text("a\x00b\x1b[31mc\r\nd\ud800") == "ab[31mc\nd?"


def test_only_a_regular_file_of_a_sensible_size_may_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(b"12345")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        listener.bind("socket")
        expected = {
            "file": "",
            "gone": "does not exist",
            ".": "is a folder, not a file",
            "pipe": "is a device, a pipe or a socket, not a file",
            "socket": "is a device, a pipe or a socket, not a file",
            "link": "is a device, a pipe or a socket, not a file",
            "/dev/zero": "is a device, a pipe or a socket, not a file",
            "empty": "is empty",
            "/proc/self/status": "is empty",
            "sparse": f"has {1 << 40} bytes; at most 5 are read",
            "a" * 300: "cannot be read: File name too long",
            "loop": "cannot be read: Too many levels of symbolic links",
        }
        assert {name: file_problem(tmp_path / name, 5) for name in expected} == expected
        assert file_problem(Path("a\0b"), 5).startswith("cannot be read:")


def test_text_is_utf_8_or_refused_with_its_line() -> None:
    assert decoded("Grüße\n日本".encode()) == "Grüße\n日本"
    assert decoded(b"\xef\xbb\xbfa") == "a"
    assert decoded(b"\xef\xbb\xbfa", 2) == "\ufeffa"
    with pytest.raises(ValueError, match="line 2, byte 0xFC at place 3 is not UTF-8"):
        decoded("eins\nGr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(ValueError, match="line 7, byte 0xFC at place 3 is not UTF-8"):
        decoded("Gr\xfc\xdfe".encode("latin-1"), 7)
