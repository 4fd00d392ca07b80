"""The command line: the same functions that the app calls.

python -m upq run --model bundled --method upq --preset quick --set int2.distill.beta=0.5
python -m upq demo --preset smoke --json demo.json
"""

from __future__ import annotations

import os
import sys

from upq.errors import Cancelled, Interrupted, UserError

try:
    from upq.cli.parser import parser
except ModuleNotFoundError as missing:
    sys.exit(f"Not installed: {missing.name}; run `make install` and begin with .venv/bin/python.")


def main(arguments: list[str] | None = None) -> int:
    """Parse and run one command; returns the exit code. A UserError becomes one sentence on stderr."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"{error.message} {error.hint}".strip(), file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing fails at exit
        return 1
    except (KeyboardInterrupt, Cancelled, Interrupted):
        print(
            "Stopped. A run that was going on is kept; `python -m upq list` shows it.",
            file=sys.stderr,
        )
        return 130


if __name__ == "__main__":
    sys.exit(main())
