"""The report of some runs from the command line: python -m ui.report 1 2 --out report.html"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ui.results import MAX_RUNS, gather, report
from upq.errors import UserError
from upq.files import write_bytes_atomic
from upq.store import data_dir, open_store


def main(arguments: list[str] | None = None) -> int:
    """Write the page and print where it is; return the exit code. A UserError becomes one sentence on stderr."""
    options = command_line().parse_args(arguments)
    try:
        write(data_dir(options.data_dir), options.run, Path(options.out))
    except UserError as error:
        sys.stderr.write(f"{error.message} {error.hint}".strip() + "\n")
        return 2
    sys.stdout.write(f"{options.out}\n")
    return 0


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m ui.report", description="Write a report of runs as one HTML page."
    )
    parser.add_argument("run", type=int, nargs="+", metavar="RUN", help="numbers of the runs")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--data-dir", help="where runs are kept (default: as for python -m upq)")
    return parser


def write(folder: Path, run_ids: list[int], out: Path) -> None:
    """Write the report of these runs. Raises UserError: run_not_found, too_many_runs, not_writable."""
    if len(set(run_ids)) > MAX_RUNS:
        raise UserError(
            "too_many_runs",
            f"A report compares at most {MAX_RUNS} runs; {len(set(run_ids))} were named.",
            "Name fewer of them.",
        )
    store = open_store(folder)
    for run_id in run_ids:
        store.run(run_id)
    try:
        write_bytes_atomic(out, report(gather(store, run_ids)).encode())
    except OSError as error:
        raise UserError("not_writable", f"{out} could not be written: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
