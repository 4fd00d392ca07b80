"""Blind votes: which of two answers a person found better without knowing whose they were, and the answers that are
kept to be voted on. Both belong to a run and go with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from upq.config import PrecisionName
from upq.files import clean_text, csv_text
from upq.store.connections import Connections, next_revision
from upq.store.run import find_run

#: A or B was better, both were alike, both were bad. "same": the answers were equal, and nobody was asked.
Choice = Literal["A", "B", "tie", "bad", "same", "skipped"]
Settings = Mapping[str, str | int | float]
#: Answers of a run that are kept: those of the whole deck under some settings.
MOST_ANSWERS = 1_000


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What came of one showing of two answers.

    showing: names the showing; it counts once. deck_id: the prompt's in the deck, "" of a person's own question.
    settings: the system prompt and how both answers were drawn. seed: draws the pair and its order. at: unix seconds;
    the store fills it in.
    """

    showing: str
    run_id: int
    deck_id: str
    prompt: str
    settings: Settings
    seed: int
    shown_a: PrecisionName
    shown_b: PrecisionName
    answer_a: str
    answer_b: str
    choice: Choice
    at: float = 0.0

    @property
    def better(self) -> str:
        """The precision that was found better; "" where none was."""
        return {"A": self.shown_a, "B": self.shown_b}.get(self.choice, "")


class Written(NamedTuple):
    """A whole answer. finish: "stop" or "length"."""

    text: str
    finish: str


class Votes:
    """The tables of votes and of kept answers. owner: whose vote it is; the app of one person has one, ''."""

    def __init__(self, connections: Connections, clock: Callable[[], float]) -> None:
        self._connections = connections
        self._clock = clock

    def cast(self, vote: Vote, owner: str = "") -> bool:
        """Count a vote, and tell whether it is the first one on its showing; a second one changes nothing.

        Raises UserError("run_not_found") where the run was deleted meanwhile.
        """
        values = {**vars(vote), "settings": _as_text(vote.settings), "owner": owner}
        for name in ("prompt", "answer_a", "answer_b"):
            values[name] = clean_text(values[name])
        with self._connections.write() as db:
            find_run(db, vote.run_id)
            cursor = db.execute(
                "INSERT INTO votes (showing, run_id, owner, deck_id, prompt, settings, seed, shown_a,"
                " shown_b, answer_a, answer_b, choice, at) VALUES (:showing, :run_id, :owner,"
                " :deck_id, :prompt, :settings, :seed, :shown_a, :shown_b, :answer_a, :answer_b,"
                " :choice, :now) ON CONFLICT (showing, owner) DO NOTHING",
                {**values, "now": self._clock()},
            )
            is_first = cursor.rowcount == 1
            if is_first:
                next_revision(db)
            return is_first

    def keep_newest(self, count: int) -> int:
        """Remove all but the newest votes of visitors; return how many there were."""
        sql = (
            "DELETE FROM votes WHERE owner != '' AND id <= (SELECT id FROM votes WHERE owner != ''"
            " ORDER BY id DESC LIMIT 1 OFFSET ?)"
        )
        with self._connections.write() as db:
            return db.execute(sql, [count]).rowcount

    def of(self, run_id: int | None = None, owner: str | None = None) -> list[Vote]:
        """The votes on a run, or on all runs, oldest first. owner: this one's only; None: everybody's."""
        sql = (
            "SELECT showing, run_id, deck_id, prompt, settings, seed, shown_a, shown_b, answer_a,"
            " answer_b, choice, at FROM votes WHERE run_id = coalesce(?, run_id)"
            " AND owner = coalesce(?, owner) ORDER BY id"
        )
        with self._connections.read() as db:
            rows = list(db.query(sql, [run_id, owner]))
        return [Vote(**{**row, "settings": json.loads(row["settings"])}) for row in rows]

    def outcomes(self, run_id: int, owner: str | None = None) -> list[tuple[str, str, str]]:
        """The votes on a run without texts: (shown as A, shown as B, choice). owner: as in `of`."""
        sql = (
            "SELECT shown_a, shown_b, choice FROM votes WHERE run_id = ?"
            " AND owner = coalesce(?, owner) ORDER BY id"
        )
        with self._connections.read() as db:
            rows = db.query(sql, [run_id, owner])
            return [(row["shown_a"], row["shown_b"], row["choice"]) for row in rows]

    def runs(self) -> list[int]:
        """The runs that have votes."""
        with self._connections.read() as db:
            rows = db.query("SELECT DISTINCT run_id FROM votes ORDER BY run_id")
            return [row["run_id"] for row in rows]

    def showings(self, run_id: int, owner: str = "") -> set[str]:
        """The showings of a run that somebody has voted on, skipped, or whose answers were equal."""
        sql = "SELECT showing FROM votes WHERE run_id = ? AND owner = ?"
        with self._connections.read() as db:
            return {row["showing"] for row in db.query(sql, [run_id, owner])}

    def newest(self) -> int:
        """A number that is another one after each vote; 0 where there is none."""
        with self._connections.read() as db:
            (row,) = db.query("SELECT coalesce(max(id), 0) + count(*) AS newest FROM votes")
            return row["newest"]

    def answer(self, run_id: int, precision: str, question: str) -> Written | None:
        """The kept answer of a model to a question, which is named by its `question_digest`."""
        sql = "SELECT text, finish FROM deck_answers WHERE run_id = ? AND precision = ? AND question = ?"
        with self._connections.read() as db:
            rows = list(db.query(sql, [run_id, precision, question]))
        return Written(**rows[0]) if rows else None

    def keep_answer(self, run_id: int, precision: str, question: str, written: Written) -> None:
        """Keep an answer; the first one stays. Where a run has MOST_ANSWERS the collection begins anew.

        Raises UserError("run_not_found").
        """
        with self._connections.write() as db:
            find_run(db, run_id)
            kept = db.execute("SELECT count(*) FROM deck_answers WHERE run_id = ?", [run_id])
            if kept.fetchone()[0] >= MOST_ANSWERS:
                db.execute("DELETE FROM deck_answers WHERE run_id = ?", [run_id])
            db.execute(
                "INSERT INTO deck_answers VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [run_id, precision, question, clean_text(written.text), written.finish],
            )


def votes_csv(votes: Iterable[Vote]) -> str:
    """Votes as CSV, one a line, with their texts and the precision that each found better."""
    settings = ("system", "max_new_tokens", "temperature", "top_p", "seed", "repetition_penalty")
    texts = ("prompt", "answer_a", "answer_b")
    plain = ("run_id", "deck_id", "shown_a", "shown_b", "choice")
    head = [*plain, "better", "at", "draw_seed", *texts, *settings]
    return csv_text(
        head,
        (
            [
                *(getattr(vote, name) for name in plain),
                vote.better,
                vote.at,
                vote.seed,
                *(getattr(vote, name) for name in texts),
                *(vote.settings.get(name) for name in settings),
            ]
            for vote in votes
        ),
    )


def question_digest(prompt: str, settings: Settings) -> str:
    """Name a question together with all that its answer is drawn with."""
    return hashlib.sha256(json.dumps([prompt, _as_text(settings)]).encode()).hexdigest()


def _as_text(settings: Settings) -> str:
    cleaned: dict[str, Any] = {
        name: clean_text(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    return json.dumps(cleaned, sort_keys=True)
