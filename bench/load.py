"""Many pages at once, and faults in the middle of runs: what docs/reliability.md promises, measured on the real app.

python -m bench.load polls kills

polls: twenty pages poll for a minute beside three that chat and a run that trains. kills: the worker and the app are
killed at random moments of a small run and resumed. All of it happens on this machine; other programs on it slow the
polls down, so the load of the machine stands beside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import kills, polls, report

Part = Callable[[Path, argparse.Namespace], tuple[list[dict[str, Any]], list[str]]]


def _polls(folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    return asyncio.run(polls.measure(folder, options.seconds))


def _kills(folder: Path, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    return kills.measure(folder, options.kills, options.seed)


PARTS: dict[str, Part] = {"polls": _polls, "kills": _kills}


def main() -> int:
    """Run the chosen parts and print a table and the verdicts of each; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the pages poll")
    parser.add_argument("--kills", type=int, default=20, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    broken: list[str] = []
    for name in options.parts or PARTS:
        before = os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="upq-load-") as folder:
            rows[name], problems = PARTS[name](Path(folder), options)
        broken += problems
        report.show(rows[name])
        load = f"load of the machine {before:.1f} before and {os.getloadavg()[0]:.1f} after"
        sys.stdout.write(f"{name}: {'; '.join(problems) or 'kept'}; {load}\n\n")
    report.save(options.json, [{"part": name, **row} for name in rows for row in rows[name]])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
