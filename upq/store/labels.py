"""What people write on runs, a name, a note and a star, and the search through runs by it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlite_utils import Database

from upq.errors import UserError
from upq.files import clean_text
from upq.store.connections import next_revision
from upq.store.run import HOUSE, Run, RunState, find_run, from_row

NAME_CHARACTERS = 200
NOTE_CHARACTERS = 4000
_SEARCH = (
    "SELECT * FROM runs WHERE kind = coalesce(?, kind) AND state = coalesce(?, state)"
    " AND owner IN (coalesce(?, owner), ?) AND starred >= ?"
    " AND instr(lower(name), lower(?)) AND instr(lower(note), lower(?))"
    " AND NOT EXISTS (SELECT 1 FROM json_each(?) WHERE NOT instr(lower('#' || runs.id || char(10)"
    " || name || char(10) || note || char(10) || model || char(10) || method || char(10)"
    " || preset || char(10) || kind), lower(value))) ORDER BY runs.id DESC LIMIT ?"
)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is to be written on a run; None leaves that part as it is."""

    name: str | None = None
    note: str | None = None
    starred: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which runs are looked for: all that fit every part. Empty parts fit every run.

    text: its words, each of which stands in the name, note, model, method, preset or number of a run. name, note: parts
    of these alone. Upper and lower case of the letters A to Z are alike. owner: those of the house and of this owner.
    """

    kind: str | None = None
    text: str = ""
    name: str = ""
    note: str = ""
    state: RunState | None = None
    starred: bool = False
    owner: str | None = None


def write(db: Database, run_id: int, labels: Labels) -> Run:
    """Write labels on a run inside the caller's transaction and return it.

    A name is one line. Raises UserError: run_not_found, bad_label (too long).
    """
    run = find_run(db, run_id)
    name = run.name if labels.name is None else clean_name(labels.name)
    note = run.note if labels.note is None else clean_note(labels.note)
    starred = run.starred if labels.starred is None else labels.starred
    if (name, note, starred) == (run.name, run.note, run.starred):
        return run
    db.execute(
        "UPDATE runs SET name = ?, note = ?, starred = ?, revision = ? WHERE id = ?",
        [name, note, starred, next_revision(db), run_id],
    )
    return find_run(db, run_id)


def clean_name(text: str) -> str:
    """A name on one line. Raises UserError("bad_label")."""
    return _bounded("name", " ".join(clean_text(text).split()), NAME_CHARACTERS)


def clean_note(text: str) -> str:
    """A note without blank lines around it. Raises UserError("bad_label")."""
    return _bounded("note", clean_text(text).strip(), NOTE_CHARACTERS)


def search(db: Database, wanted: Wanted, limit: int) -> list[Run]:
    """The runs that fit, the newest first."""
    words = [clean_text(word) for word in wanted.text.split()]
    found = db.query(
        _SEARCH,
        [
            wanted.kind,
            wanted.state,
            wanted.owner,
            HOUSE,
            wanted.starred,
            clean_text(wanted.name),
            clean_text(wanted.note),
            json.dumps(words),
            limit,
        ],
    )
    return [from_row(row) for row in found]


def _bounded(what: str, text: str, most: int) -> str:
    if len(text) > most:
        message = f"The {what} has {len(text):,} characters; at most {most:,} are kept."
        raise UserError("bad_label", message, "Shorten it.")
    return text
