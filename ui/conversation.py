"""A kept conversation as a page, for the command line: `python -m upq conversations --export FILE.html NUMBER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ui.chat.render_history import page
from upq.errors import UserError
from upq.files import write_bytes_atomic
from upq.store import data_dir, open_store


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print where it is; return the exit code. A UserError becomes one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m ui.conversation", description="Write a kept conversation as an HTML page."
    )
    parser.add_argument("number", type=int)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--data-dir")
    options = parser.parse_args(arguments)
    try:
        store = open_store(data_dir(options.data_dir))
        text = page(store.conversations.get(options.number))
        write_bytes_atomic(options.out, text.encode())
    except UserError as error:
        sys.stderr.write(f"{error.message} {error.hint}".strip() + "\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{options.out} could not be written: {error.strerror}.\n")
        return 2
    sys.stdout.write(f"{options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
