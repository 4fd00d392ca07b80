"""Conversations that are kept: what was asked, how the answers were drawn, and what each precision answered.

A conversation is one row, written anew when a turn is over. It outlives the run that answered, so it keeps the names of
its models. Nothing in a row is believed when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlite_utils import Database

from upq.config import PrecisionName
from upq.errors import UserError
from upq.files import clean_text
from upq.store.connections import Connections
from upq.store.run import LARGEST_ID

#: Conversations that an owner keeps; a new one takes the place of the one that was gone on with longest ago.
MOST_KEPT = 5000
#: Longest conversation as JSON, characters: hundreds of turns, or ten of the longest answers that there are.
MOST_CHARACTERS = 2_000_000
TITLE_CHARACTERS = 200
#: What is searched for is cut here.
SEARCH_CHARACTERS = 200
#: A title that nobody gave is cut earlier, to fit on a line.
FIRST_TITLE_CHARACTERS = 80


class _Kept(BaseModel):
    """What is kept as JSON. Keys that a later version wrote are left out."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Answer(_Kept):
    """What one precision answered: a message of the chat, whose fields these are."""

    content: str
    finish: str = "stop"
    tokens: Annotated[int, Field(ge=0)] = 0
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    repeats: bool = False
    left_out: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=0)] = 0
    hint: str = ""


class Exchange(_Kept):
    """A question, how its answers were drawn, and the answer of each precision that was there."""

    question: str
    system: str = ""
    decoding: Mapping[str, int | float] = Field(default_factory=dict)
    answers: Mapping[PrecisionName, Answer]


class Author(_Kept):
    """The model behind a column, in words that are true when its run is gone. method: empty for FP16."""

    model: str
    method: str = ""
    bits_per_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Content(_Kept):
    """What the page knows of a conversation. run_id: None for the bundled FP16 model."""

    run_id: int | None
    authors: Mapping[PrecisionName, Author]
    exchanges: Annotated[list[Exchange], Field(min_length=1)]


class Place(NamedTuple):
    """Where a conversation is kept, and how often it was saved, which tells whether another window changed it."""

    id: int
    saves: int


class Headline(NamedTuple):
    """A line of the list. Times are unix seconds."""

    id: int
    title: str
    created_at: float
    updated_at: float
    run_id: int | None


class Found(NamedTuple):
    """What a search found: as many lines as were asked for, and how many there are in all."""

    lines: list[Headline]
    total: int


class Conversation(NamedTuple):
    """A kept conversation."""

    head: Headline
    content: Content
    place: Place


_AUTHORS = TypeAdapter(Mapping[PrecisionName, Author])
_EXCHANGES = TypeAdapter(Annotated[list[Exchange], Field(min_length=1)])


class Conversations:
    """The table of conversations. Everybody sees only what has their `owner`; the app of one person has one, ''.

    most_kept: conversations of an owner; a new one takes the place of the one that was gone on with longest ago.
    """

    most_kept = MOST_KEPT

    def __init__(self, connections: Connections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock

    def save(self, content: Content, at: Place | None = None, owner: str = "") -> Place:
        """Keep a conversation, in the place of what was kept of it, and return where.

        What another window changed or deleted since is left alone: the conversation becomes a new one then. Raises
        UserError: conversation_too_long, and what SQLite reports.
        """
        turns = _as_json([exchange.model_dump() for exchange in content.exchanges])
        if len(turns) > MOST_CHARACTERS:
            raise UserError(
                "conversation_too_long",
                f"This conversation has {len(turns):,} characters; at most {MOST_CHARACTERS:,} are kept.",
                "Export it, and begin a new chat.",
            )
        authors = _as_json({name: author.model_dump() for name, author in content.authors.items()})
        now = self._clock()
        with self._connections.write() as db:
            if at and (place := _rewritten(db, at, owner, (now, content.run_id, authors, turns))):
                _index(db, place.id, content)
                return place
            db.execute(
                "DELETE FROM conversations WHERE id IN (SELECT id FROM conversations"
                " WHERE owner = ? ORDER BY updated_at DESC, id DESC LIMIT -1 OFFSET ?)",
                [owner, self.most_kept - 1],
            )
            cursor = db.execute(
                "INSERT INTO conversations (owner, title, created_at, updated_at, run_id, models,"
                " turns) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [owner, _first_title(content), now, now, content.run_id, authors, turns],
            )
            place = Place(int(cursor.lastrowid or 0), 1)
            _index(db, place.id, content)
            return place

    def get(self, number: int, owner: str = "") -> Conversation:
        """The conversation with this number. Raises UserError: conversation_not_found, conversation_damaged."""
        with self._connections.read() as db:
            return _vetted(_row(db, number, owner))

    def find(self, text: str = "", limit: int = 50, owner: str = "") -> Found:
        """The newest conversations whose title, questions or answers hold a text, in capitals or not."""
        words = _folded(text.strip()[:SEARCH_CHARACTERS])
        pattern = re.sub(r"([\\%_])", r"\\\1", words)
        with self._connections.read() as db:
            rows = list(
                db.query(
                    "SELECT id, title, created_at, updated_at, run_id, count(*) OVER () AS total"
                    " FROM conversations WHERE owner = ? AND (? = '' OR words LIKE ? ESCAPE '\\')"
                    " ORDER BY updated_at DESC, id DESC LIMIT ?",
                    [owner, words, f"%{pattern}%", limit],
                )
            )
        total = rows[0]["total"] if rows else 0
        return Found([Headline(*(row[name] for name in Headline._fields)) for row in rows], total)

    def rename(self, number: int, title: str, owner: str = "") -> None:
        """Give a conversation another title. Raises UserError as `get`, and bad_title."""
        title = " ".join(clean_text(title).split())[:TITLE_CHARACTERS]
        if not title:
            raise UserError("bad_title", "The title is empty; expected some words.")
        with self._connections.write() as db:
            content = _vetted(_row(db, number, owner)).content
            db.execute("UPDATE conversations SET title = ? WHERE id = ?", [title, number])
            _index(db, number, content)

    def delete(self, number: int, owner: str = "") -> None:
        """Remove a conversation. Raises UserError("conversation_not_found")."""
        with self._connections.write() as db:
            _row(db, number, owner)
            db.execute("DELETE FROM conversations WHERE id = ?", [number])

    def delete_all(self, owner: str = "") -> int:
        """Remove all conversations of an owner and return how many there were."""
        with self._connections.write() as db:
            return db.execute("DELETE FROM conversations WHERE owner = ?", [owner]).rowcount

    def expire(self, before: float) -> int:
        """Remove what visitors have not gone on with since a time, unix seconds; return how many there were."""
        sql = "DELETE FROM conversations WHERE owner != '' AND updated_at < ?"
        with self._connections.write() as db:
            return db.execute(sql, [before]).rowcount

    def keep_newest(self, count: int) -> int:
        """Remove all but those that visitors have gone on with last; return how many there were."""
        sql = (
            "DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE owner != ''"
            " ORDER BY updated_at DESC, id DESC LIMIT -1 OFFSET ?)"
        )
        with self._connections.write() as db:
            return db.execute(sql, [count]).rowcount


def problems(db: Database) -> list[str]:
    """What is wrong with the rows, a line each."""
    found = []
    for row in db.query("SELECT * FROM conversations ORDER BY id"):
        try:
            _vetted(row)
        except UserError as error:
            found.append(error.message)
    return found


def _rewritten(
    db: Database, at: Place, owner: str, values: tuple[float, int | None, str, str]
) -> Place | None:
    """Write a row anew, if nobody did since, and return its place."""
    found = db.query(
        "UPDATE conversations SET updated_at = ?, run_id = ?, models = ?, turns = ?,"
        " saves = saves + 1 WHERE id = ? AND saves = ? AND owner = ? RETURNING id, saves",
        [*values, at.id, at.saves, owner],
    )
    return next((Place(**row) for row in found), None)


def _index(db: Database, number: int, content: Content) -> None:
    """Write down what a conversation is found by: its title and all that was said, in small letters."""
    (row,) = db.query("SELECT title FROM conversations WHERE id = ?", [number])
    said = [row["title"]]
    for exchange in content.exchanges:
        said += [exchange.question, *(answer.content for answer in exchange.answers.values())]
    words = _folded("\n".join(said))
    db.execute("UPDATE conversations SET words = ? WHERE id = ?", [words, number])


def _folded(text: str) -> str:
    return clean_text(text).casefold()


def _as_json(value: object) -> str:
    """JSON as SQLite takes it: a half of a character becomes a question mark."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")


def _first_title(content: Content) -> str:
    words = " ".join(clean_text(content.exchanges[0].question).split())
    if len(words) <= FIRST_TITLE_CHARACTERS:
        return words
    return words[: FIRST_TITLE_CHARACTERS - 1].rstrip() + "\u2026"


def _row(db: Database, number: int, owner: str) -> dict[str, Any]:
    """The row of an owner. Raises UserError("conversation_not_found")."""
    sql = "SELECT * FROM conversations WHERE id = ? AND owner = ?"
    is_id = 0 < number <= LARGEST_ID  # SQLite itself refuses others
    found = list(db.query(sql, [number, owner])) if is_id else []
    if not found:
        raise UserError(
            "conversation_not_found",
            f"There is no conversation {number}.",
            "It may have been deleted.",
        )
    return found[0]


def _vetted(row: dict[str, Any]) -> Conversation:
    try:
        content = Content(
            run_id=row["run_id"],
            authors=_AUTHORS.validate_python(json.loads(row["models"])),
            exchanges=_EXCHANGES.validate_python(json.loads(row["turns"])),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _damaged(row["id"], f"{place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(row["id"], str(error)) from error
    head = Headline(*(row[name] for name in Headline._fields))
    return Conversation(head, content, Place(row["id"], row["saves"]))


def _damaged(number: int, problem: str) -> UserError:
    return UserError(
        "conversation_damaged",
        f"Conversation {number} is damaged and cannot be read ({problem}).",
        "Delete it; the others are not touched.",
    )
