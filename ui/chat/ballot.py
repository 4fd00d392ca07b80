"""A ballot of the blind vote: one question, the two models that answer it unseen, and what was found of them.

It comes from the deck, or from a person's own question; which pair answers and which of the two is A is drawn.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ui.app_state import App
from ui.chat.turn import models_behind
from ui.html import Precision
from ui.requests import Question
from upq.config import derived_seed
from upq.errors import UserError
from upq.evaluation import Showing, deal, deck_cards, drawn_pair, pairs_of
from upq.jobs.ahead import Asked
from upq.store import Choice, Run, Vote, Written, question_digest

#: Pairs of the deck that are answered before somebody comes to them.
LOOK_AHEAD = 3
#: Bits of the seed that draws the pair for a person's own question: SQLite takes it as it is.
SEED_BITS = 63

_ids = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """Where a ballot stands in the deck: so many prompts of this round are done, and which round it is."""

    done: int
    of: int
    round: int
    rounds: int


@dataclass(kw_only=True)
class Ballot:
    """One showing of two answers.

    name: the showing's, which counts once; shown: the models behind A and B; deck_id and place: of a prompt of the
    deck; later: what will be asked next; written: both answers; failure: why there are none; choice: what came of
    it; is_first: whether no other window had voted on it before; id: another one each time that a ballot is shown;
    reader: for whom answers are made ahead, the same for all ballots of a page.
    """

    name: str
    run_id: int
    source: str
    question: Question
    seed: int
    shown: tuple[Precision, Precision]
    deck_id: str = ""
    place: Place | None = None
    later: list[Asked] = field(default_factory=list)
    written: tuple[Written, Written] | None = None
    failure: UserError | None = None
    choice: Choice | None = None
    is_first: bool = True
    abandoned: bool = False
    id: int = 0
    reader: int = 0

    @property
    def asked(self) -> list[Asked]:
        """What A and B are asked."""
        return [_asked(self, precision) for precision in self.shown]

    @property
    def is_waiting(self) -> bool:
        """Whether the answers are still to come."""
        return not (self.written or self.failure or self.abandoned)

    def show_after(self, before: Ballot | None) -> None:
        """Take the place of the ballot that the page showed before, which is the end of that one."""
        self.id = next(_ids)
        self.reader = before.reader if before else self.id
        if before and before is not self:
            before.abandoned = True

    def goes_on(self, app: App, chosen: int | None) -> bool:
        """Tell whether the run is still the chosen one and has both models."""
        run = app.context_run(chosen)
        return run is not None and run.id == self.run_id and set(self.shown) <= _there(app, run)

    def admit(self, app: App) -> None:
        """Ask whether both answers may be had now."""
        try:
            for asked in self.asked:
                app.models.admit(asked.decoding)
        except UserError as error:
            self.failure = error

    def collect(self, app: App) -> None:
        """Take the answers if both are there, or the reason why one cannot come. Equal answers are no vote."""
        try:
            first, second = (app.ahead.written(asked) for asked in self.asked)
            if first is None or second is None:
                return
            self.written = (first, second)
            if first.text.strip() == second.text.strip():
                self.vote(app, "same")
        except UserError as error:
            self.failure = error

    def vote(self, app: App, choice: Choice) -> None:
        """Let a choice count, unless another window had one for this showing. Raises UserError("run_not_found")."""
        first, second = self.written or (Written("", ""), Written("", ""))
        vote = Vote(
            showing=self.name,
            run_id=self.run_id,
            deck_id=self.deck_id,
            prompt=self.question.message,
            settings=self.asked[0].settings,
            seed=self.seed,
            shown_a=self.shown[0],
            shown_b=self.shown[1],
            answer_a=first.text,
            answer_b=second.text,
            choice=choice,
        )
        self.is_first = app.store.votes.cast(vote)
        self.choice = choice


def pairs_there(app: App, run: Run | None) -> list[tuple[Precision, Precision]]:
    """The pairs of models that can be compared."""
    return pairs_of(_there(app, run)) if run else []


def next_of_deck(app: App, run: Run, settings: Sequence[Any]) -> Ballot | None:
    """The first prompt of the deck that was not shown with its pair; None where all were.

    settings: the system prompt, then how answers are drawn. Raises UserError("bad_argument").
    """
    pairs = pairs_there(app, run)
    seed = derived_seed(run.id, "blind vote")
    shows = [
        (showing.round, _of_showing(run, showing, settings, seed))
        for showing in deal(deck_cards(), pairs, seed)
    ]
    seen = app.store.votes.showings(run.id)
    left = [(number, ballot) for number, ballot in shows if ballot.name not in seen]
    if not left:
        return None
    (number, ballot), *others = left
    in_round = [one.name for its_number, one in shows if its_number == number]
    ballot.place = Place(sum(name in seen for name in in_round), len(in_round), number, len(pairs))
    ballot.later = [asked for _, other in others[:LOOK_AHEAD] for asked in other.asked]
    return ballot


def of_message(app: App, run: Run, message: str, settings: Sequence[Any]) -> Ballot:
    """A person's own question. Raises UserError: empty_message, bad_argument."""
    seed = secrets.randbits(SEED_BITS)
    return Ballot(
        name=secrets.token_hex(16),
        run_id=run.id,
        source=run.model,
        question=Question.at([message, *settings]),
        seed=seed,
        shown=drawn_pair(pairs_there(app, run), seed),
    )


def _of_showing(run: Run, showing: Showing, settings: Sequence[Any], seed: int) -> Ballot:
    question = Question.at([showing.card.prompt, *settings])
    ballot = Ballot(
        name="",
        run_id=run.id,
        source=run.model,
        question=question,
        seed=seed,
        shown=showing.shown,
        deck_id=showing.card.id,
    )
    where = "/".join([str(run.id), showing.card.id, *sorted(showing.shown)])
    return replace(ballot, name=question_digest(where, ballot.asked[0].settings))


def _asked(ballot: Ballot, precision: Precision) -> Asked:
    return Asked(
        run_id=ballot.run_id,
        precision=precision,
        source=ballot.source,
        message=ballot.question.message,
        system=ballot.question.system,
        decoding=ballot.question.decoding,
        is_kept=bool(ballot.deck_id),
    )


def _there(app: App, run: Run | None) -> set[Precision]:
    return set(models_behind(app, run.id if run else None))
