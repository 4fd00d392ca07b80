"""What the commands do that take a run elsewhere: export, push, pack and unpack."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from upq.cli.commands import data_folder, store_of, write_json
from upq.config import QUANTIZED
from upq.errors import UserError, shown
from upq.files import staging_folder
from upq.units import size

if TYPE_CHECKING:
    from upq.export import Exported
    from upq.store import Moved, Store

#: Progress is shown in steps of so many percent.
SHOWN_PERCENT = 10
MB = 1e6


def export(options: Any) -> None:
    """Write a model of a run in a format of other programs, or list the formats."""
    store = store_of(options)
    precisions = _precisions(store, options.run, options.precision)
    if options.list:
        _list_formats(options, store, precisions)
        return
    precision = _the_one(options.run, precisions)
    made = _exported(options, store, precision, Path(options.out) if options.out else None)
    print(f"{made.folder}: {precision} of run {options.run}, {size(made.size_bytes)}")
    print(f"  {made.found}")
    for path in made.files:
        print(f"  {path.relative_to(made.folder)}  {path.stat().st_size:,} bytes")
    for use in made.uses:
        print(f"\n{use.program}:\n{_indented(use.command)}")
    write_json(options.json, _as_json(options, precision, made))


def push(options: Any) -> None:
    """Export, and send the files with their model card to the hub; with --dry-run only the first."""
    store = store_of(options)
    precision = _the_one(options.run, _precisions(store, options.run, options.precision))

    from upq.export import publish

    publish.require_repo(options.repo)
    if options.dry_run:
        made = _exported(options, store, precision, Path(options.dry_run))
        kind = "private, where it is new" if options.private else "public, where it is new"
        print(f"Would be sent to https://huggingface.co/{options.repo} ({kind}):")
        print("\n".join(f"  {name}" for name in publish.files_of(made.folder)))
        return
    publish.require_login()
    with staging_folder(data_folder(options)) as staging:
        made = _exported(options, store, precision, staging / "files")
        sent = publish.publish(made.folder, options.repo, options.private)
    print(f"{sent.address}: {precision} of run {options.run}, {len(sent.files)} files")


def pack(options: Any) -> None:
    """Write a finished run as one file."""
    path = Path(options.file)
    moved = store_of(options).pack(options.run, path)
    print(f"{path}: run {options.run} with {_contents(moved)}, {size(path.stat().st_size)}")


def unpack(options: Any) -> None:
    """Take in a run that was packed elsewhere."""
    path = Path(options.file)
    moved = store_of(options).unpack(path)
    if moved.is_new:
        print(f"Run {moved.run_id} is {path} with {_contents(moved)}.")
        print(f"  python -m upq chat {moved.run_id} --precision {','.join(moved.precisions)}")
    elif moved.checks:
        print(f"{path} is here already as run {moved.run_id}; {_checks(moved)} were added to it.")
    else:
        print(f"{path} is here already as run {moved.run_id}; nothing was added.")


def _contents(moved: Moved) -> str:
    return ", ".join([*moved.precisions, _checks(moved)])


def _checks(moved: Moved) -> str:
    return f"{moved.checks} finished {'check' if moved.checks == 1 else 'checks'}"


def _precisions(store: Store, run_id: int, named: str | None) -> list[str]:
    """The precision that was named, else all that the run has. Raises UserError: bad_precision, artifact_not_found."""
    known = [precision.name for precision in QUANTIZED]
    if named is not None and named.upper() not in known:
        raise UserError(
            "bad_precision", f"--precision is {shown(named)}; expected {' or '.join(known)}."
        )
    store.run(run_id)
    there = [row.precision for row in store.artifacts(run_id)]
    wanted = [named.upper()] if named else there
    if not wanted or not set(wanted) <= set(there):
        raise UserError(
            "artifact_not_found",
            f"Run {run_id} has no {named.upper() if named else 'INT4 or INT2'} model.",
            "Choose a run that is done, or wait for this one.",
        )
    return wanted


def _the_one(run_id: int, precisions: list[str]) -> str:
    if len(precisions) > 1:
        raise UserError(
            "bad_precision",
            f"Run {run_id} has {' and '.join(precisions)}; expected --precision with one of them.",
        )
    return precisions[0]


def _list_formats(options: Any, store: Store, precisions: list[str]) -> None:
    from upq.jobs import exports

    rows = [
        {"precision": precision, **row}
        for precision in precisions
        for row in exports.offers(exports.model_of(store, options.run, precision))
    ]
    table = [
        (
            row["precision"],
            row["key"],
            row["title"],
            row["runs_in"],
            f"{row['size_bytes'] / MB:,.1f}" if "size_bytes" in row else "",
            f"{row['bits_per_weight']:.4g}" if "size_bytes" in row else "",
            row.get("exactness") or f"no: {row['why_not']}",
        )
        for row in rows
    ]
    headers = ["model", "--format", "title", "runs in", "MB", "bits/weight", "exactness"]
    print(tabulate(table, headers=headers, maxcolwidths=[None, None, 24, 30, None, None, 50]))
    write_json(options.json, {"run": options.run, "formats": rows})


def _exported(options: Any, store: Store, precision: str, folder: Path | None) -> Exported:
    """Export with progress on stderr. folder: None: one here, named after the model, its precision and the format."""
    from upq import export as exporting
    from upq.jobs import exports

    form = exporting.format_named(options.format)
    model = exports.model_of(store, options.run, precision)
    results = exports.results_of(store, options.run, precision)
    place = folder or Path(f"{model.name}-{precision}-{form.key}")
    return exporting.export(model, form.key, place, _Ticker(form.key), results)


class _Ticker:
    """Says on stderr how far a work has come."""

    def __init__(self, what: str) -> None:
        self._what, self._said = what, 0

    def __call__(self, share: float) -> None:
        percent = int(100 * share) // SHOWN_PERCENT * SHOWN_PERCENT
        if percent > self._said:
            self._said = percent
            print(f"{self._what}: {percent} %", file=sys.stderr, flush=True)


def _as_json(options: Any, precision: str, made: Exported) -> dict[str, Any]:
    files = [
        {"name": path.relative_to(made.folder).as_posix(), "size_bytes": path.stat().st_size}
        for path in made.files
    ]
    return {
        "run": options.run,
        "precision": precision,
        "format": options.format,
        "folder": str(made.folder),
        "size_bytes": made.size_bytes,
        "found": made.found,
        "files": files,
        "uses": [vars(use) for use in made.uses],
    }


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
