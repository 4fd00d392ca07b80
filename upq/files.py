"""Files that are complete or absent: folders committed by rename, with a sha256 manifest.

A folder is written under a staging name beside its final place, hashed, flushed to the disk and
renamed. A kill at any moment leaves the old state or the new one, and perhaps a staging folder,
which `sweep` removes. safetensors renames without flushing, so even its files go through here.
Files and text that come from people are looked at here too.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tabulate import tabulate

#: What ships with the package: prompts, checks and the quantized demo models.
RESOURCES = Path(__file__).parent / "resources"
MANIFEST = "MANIFEST.sha256"  # the format of `sha256sum`, so that tool can check a folder as well
STAGING_PREFIX = ".staging-"
_CHUNK_BYTES = 1 << 20
#: What UTF-16 begins with.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 without tab and newline, DEL, C1


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for what is not complete. It is gone at the end, and locked until then against `sweep`."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit_dir(final: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `final` with what `write(staging)` puts there, all of it or nothing, durably.

    An existing `final` is replaced; between the two renames it is absent, so versions that must
    never be missing get names of their own. What `write` raises passes through, and no staging
    folder stays behind.
    """
    with staging_folder(final.parent) as staging:
        write(staging)
        _write_manifest(staging)
        _flush_tree(staging)
        if final.exists():
            _retire(final)
        staging.rename(final)
        _flush(final.parent)


def verify_dir(path: Path) -> list[str]:
    """What is wrong with a committed folder, a sentence per problem; empty: complete, undamaged."""
    try:
        return _differences(path, _read_manifest(path / MANIFEST))
    except (OSError, ValueError) as error:
        return [f"{path.name} cannot be verified: {error}."]


def sweep(parent: Path) -> None:
    """Remove what killed writers left in `parent`. What a living one is writing stays."""
    if not parent.is_dir():
        return
    for entry in parent.iterdir():
        if entry.name.startswith(STAGING_PREFIX):
            with suppress(BlockingIOError, FileNotFoundError), _locked(entry):
                _remove(entry)


def remove_dir(path: Path) -> None:
    """Remove a committed folder; half of it is never seen under its name. Absent is fine."""
    if path.exists():
        _retire(path)


def commit_file(final: Path, write: Callable[[Path], object]) -> None:
    """Make the file `final` with what `write(staging)` puts there, all of it or nothing, durably.

    It is as readable as any that the user makes. What `write` raises passes through, and no staging file stays behind.
    """
    with staging_folder(final.parent) as folder:
        staging = folder / final.name
        write(staging)
        _flush(staging)
        staging.replace(final)
        _flush(final.parent)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file that is complete or unchanged, as `commit_file` does."""
    commit_file(path, lambda staging: staging.write_bytes(data))


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_problem(path: Path, most_bytes: int) -> str:
    """Why a file that a person named must not be opened, in words that go on from its name; empty where it may be.

    Only regular files may: a device gives bytes without end, and opening a pipe waits for whoever writes to it. What
    the system makes up while it is read, such as /proc, says that it is empty. Nothing is opened here.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(found.st_mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(found.st_mode):
        return "is a device, a pipe or a socket, not a file"
    if not found.st_size:
        return "is empty"
    if found.st_size > most_bytes:
        return f"has {found.st_size} bytes; at most {most_bytes} are read"
    return "" if os.access(path, os.R_OK) else "cannot be read: Permission denied"


def decoded(raw: bytes, line: int = 1) -> str:
    """The text of bytes that begin with this line of a file, without the mark that some editors begin UTF-8 with.

    Raises ValueError that names the line of the first byte that is not UTF-8.
    """
    if line == 1 and raw.startswith(_UTF_16):
        raise ValueError("line 1 begins like UTF-16, not UTF-8")
    mark = len(_BYTE_ORDER_MARK) if line == 1 and raw.startswith(_BYTE_ORDER_MARK) else 0
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        at, what = mark + error.start, f"byte 0x{raw[mark + error.start]:02X}"
        reason = "is not UTF-8; the file is probably Latin-1 or Windows-1252"
    else:
        if "\0" not in text:
            return text
        at, what, reason = raw.index(0), "a zero byte", "is no text; the file is binary or UTF-16"
    number = line + raw.count(b"\n", 0, at)
    column = at - raw.rfind(b"\n", 0, at)
    raise ValueError(f"line {number}, {what} at place {column} {reason}")


def is_whole(text: str) -> bool:
    """Whether every character of a text is one: JSON can name half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def clean_text(text: str) -> str:
    """Text for SQLite, terminals and browsers: no lone surrogates, no controls but \\n and \\t."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub("", whole.replace("\r\n", "\n").replace("\r", "\n"))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Head and rows as CSV. Text that a spreadsheet would take for a formula gets an apostrophe before it; None is
    empty.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_plain_cell(value) for value in row] for row in rows)
    return stream.getvalue()


def _plain_cell(value: object) -> object:
    starts_formula = isinstance(value, str) and value != "" and value[0] in "=+-@\t\r"
    return f"'{value}" if starts_formula else value


def _differences(folder: Path, expected: dict[str, str]) -> list[str]:
    present = {name for name in _file_names(folder) if name != MANIFEST}
    problems = [f"{name} is missing." for name in sorted(expected.keys() - present)]
    problems += [f"{name} is not in {MANIFEST}." for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        found = sha256_file(folder / name)
        if found != expected[name]:
            problems.append(f"{name} is damaged: sha256 is {found}, expected {expected[name]}.")
    return problems


def _file_names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _write_manifest(folder: Path) -> None:
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in _file_names(folder)]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def _read_manifest(path: Path) -> dict[str, str]:
    expected = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
            raise ValueError(f"line {line[:80]!r} is not a digest and a name")
        expected[line[66:]] = line[:64]
    return expected


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file or folder; the system lets go of it when this process dies. Raises BlockingIOError if it is held."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _retire(path: Path) -> None:
    """Remove `path`, renamed first: a kill halfway leaves nothing that looks complete."""
    with staging_folder(path.parent) as grave:
        path.rename(grave / path.name)
        _flush(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def markdown_line(text: str) -> str:
    """A text as it is, on one line of a Markdown file; it never becomes markup there."""
    return re.sub(r"([\\`*_\[\]<>|!~&#])", r"\\\1", " ".join(text.split()))


def markdown_block(text: str) -> list[str]:
    """The lines of a text as a block of code in a Markdown file, whatever fences it has itself."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of a Markdown file, a row a line, with the names of the columns of the first; no cell becomes markup."""
    cells = [{name: markdown_line(cell) for name, cell in row.items()} for row in rows]
    return tabulate(cells, headers="keys", tablefmt="github", disable_numparse=True)
