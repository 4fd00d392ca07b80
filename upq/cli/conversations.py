"""Kept conversations on the command line: a list, a file to take along, and the end of one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

import upq
from upq.cli.commands import data_folder, store_of
from upq.errors import UserError, shown
from upq.files import write_bytes_atomic

if TYPE_CHECKING:
    from upq.store import Store

#: Lines of the list.
LISTED = 100


def conversations(options: Any) -> int:
    """List the conversations, or export or delete one; 1 where somebody changed their mind."""
    if options.export:
        return _export(options, *options.export)
    if options.delete is not None:
        return _delete(store_of(options), options.delete, options.yes)
    _list(store_of(options), options.search)
    return 0


def _list(store: Store, search: str) -> None:
    found = store.conversations.find(search, LISTED)
    rows = [
        (
            line.id,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(line.updated_at)),
            line.run_id or "bundled model",
            line.title,
        )
        for line in found.lines
    ]
    if not rows:
        print(f"No conversation holds {shown(search)}." if search else "No conversations yet.")
        return
    print(tabulate(rows, headers=["conversation", "last answer", "run", "title"], maxcolwidths=70))
    if found.total > len(rows):
        print(f"The newest {len(rows)} of {found.total:,}; --search finds the others.")


def _export(options: Any, file: str, number: str) -> int:
    """Write a conversation in the format that the file's name ends with."""
    from upq.store import as_lines, as_markdown

    path = Path(file).absolute()
    texts = {".md": as_markdown, ".jsonl": as_lines}
    if path.suffix not in (*texts, ".html"):
        raise UserError(
            "bad_argument",
            f"{path.name} ends with {shown(path.suffix)}; expected .md, .jsonl or .html.",
        )
    if not number.isdecimal():
        raise UserError("bad_argument", f"{shown(number)} is no conversation; expected its number.")
    conversation = store_of(options).conversations.get(int(number))
    if path.suffix == ".html":  # only the interface makes HTML, and nothing here imports it
        command = [sys.executable, "-m", "ui.conversation", number, "--out", str(path)]
        command += ["--data-dir", str(data_folder(options))]
        return subprocess.run(command, cwd=Path(upq.__file__).parents[1], check=False).returncode
    try:
        write_bytes_atomic(path, texts[path.suffix](conversation).encode())
    except OSError as error:
        raise UserError(
            "not_writable", f"{path} could not be written: {error.strerror}."
        ) from error
    print(path)
    return 0


def _delete(store: Store, number: int, is_sure: bool) -> int:
    conversation = store.conversations.get(number)
    if not is_sure and not _agreed(f"Delete conversation {number}, {conversation.head.title!r}?"):
        print("Nothing is deleted.")
        return 1
    store.conversations.delete(number)
    print(f"Conversation {number} is deleted.")
    return 0


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
