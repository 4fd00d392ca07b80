"""`python -m upq votes`: what the blind votes on runs say, and a file with every vote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from upq.cli.commands import store_of
from upq.errors import UserError
from upq.files import write_bytes_atomic
from upq.store import votes_csv

if TYPE_CHECKING:
    from upq.evaluation import Tally

HEAD = (
    "run",
    "first",
    "second",
    "first better",
    "second better",
    "ties",
    "both bad",
    "same answer",
)


def votes(options: Any) -> None:
    """Print the votes of a run or of all runs, pair by pair, and write them to a file if asked to."""
    store = store_of(options)
    if options.run is not None:
        store.run(options.run)
    runs = [options.run] if options.run is not None else store.votes.runs()
    outcomes = {run: found for run in runs if (found := store.votes.outcomes(run))}
    if options.csv:
        _write(Path(options.csv).absolute(), votes_csv(store.votes.of(options.run)))
    if not outcomes:
        print("No votes yet: the view Blind of the Chat tab asks for them.")
        return

    from upq.evaluation import tallies  # noqa: PLC0415  torch takes seconds

    rows = [
        (
            run,
            *tally.pair,
            tally.wins,
            tally.losses,
            tally.ties,
            tally.bad,
            tally.same,
            _share(tally),
            tally.verdict,
        )
        for run, found in outcomes.items()
        for tally in tallies(found)
    ]
    headers = [*HEAD, "first's share of decided", "verdict"]
    print(tabulate(rows, headers=headers, disable_numparse=True))


def _share(tally: Tally) -> str:
    """The share of the first among the decided votes, with its 95 % interval."""
    low, high = tally.interval
    return f"{tally.share:.2f} ({low:.2f} to {high:.2f})" if tally.decided else ""


def _write(path: Path, text: str) -> None:
    try:
        write_bytes_atomic(path, text.encode())
    except OSError as error:
        message = f"{path} could not be written: {error.strerror}."
        raise UserError("not_writable", message) from error
    print(path)
