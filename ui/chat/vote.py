"""The view "Blind": two hidden models answer, a person votes, and only then learns whose answers they were.

The flow is a circle: `_next` makes a Ballot (`asked` changes), `_answers` waits until both answers are there, a vote
reveals whose they were, and Next goes on. The answers are made in the background (`App.ahead`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import gradio as gr

from ui.app_state import IN_ORDER, PRIVATE, App, Outputs
from ui.chat import ballot as ballots
from ui.chat import render_vote
from ui.chat.ballot import Ballot
from ui.chat.script import VOTE
from ui.header import Header
from ui.html import Html, notice
from upq.errors import UserError
from upq.evaluation import deck_cards, tallies
from upq.store import Choice, Run

BLIND = "blind"
NO_BALLOT = 0
#: Between two looks whether the answers are there.
WAIT_S = 0.2
#: What a person may choose; the rest of the choices the app makes.
CHOICES = {key: choice for key, choice, _ in render_vote.CHOICES}


@dataclass
class Vote(Outputs):
    """What the view shows. ballot: the Ballot that is shown, or None; asked: its id."""

    ballot: gr.State
    asked: gr.State
    stage: gr.HTML
    tallies: gr.HTML
    message: gr.Textbox
    problem: gr.HTML


def build(app: App, header: Header, view: gr.Radio, settings: Sequence[Any]) -> None:
    """Lay out the view and wire it; the style sheet shows it while `view` is on BLIND.

    settings: the components of the system prompt and of how answers are drawn.
    """
    with gr.Column(elem_classes="card", elem_id="blind"):
        stage = gr.HTML(js_on_load=VOTE, elem_id="blind-stage")
        with gr.Row(elem_classes="send-row"):
            message = gr.Textbox(
                label="Your own question to two hidden models",
                placeholder="Or ask a question of your own",
                max_lines=8,
                scale=8,
                min_width=240,
                elem_id="blind-message",
            )
            ask = gr.Button("Ask both", scale=1, min_width=90, elem_id="blind-ask")
        problem = gr.HTML(elem_id="blind-problem")
        table = gr.HTML(elem_id="blind-tallies")
    vote = Vote(gr.State(None), gr.State(NO_BALLOT), stage, table, message, problem)
    form = [vote.ballot, header.chosen, *settings]

    def act(event: gr.EventData, before: Any, chosen: Any, *values: Any) -> list[Any]:
        data: Any = event._data
        action = str(data.get("action", "")) if isinstance(data, dict) else ""
        return _act(app, action, before, chosen, values)

    gr.on(
        [view.change, header.chosen.change, header.catalogs["chat"].change],
        partial(_open, app),
        [view, *form],
        vote.outputs,
        trigger_mode="always_last",
        **IN_ORDER,
    )
    stage.click(act, form, vote.outputs, **IN_ORDER)
    gr.on(
        [ask.click, message.submit], partial(_ask, app), [message, *form], vote.outputs, **IN_ORDER
    )
    vote.asked.change(
        partial(_answers, app),
        vote.ballot,
        [vote.stage, vote.tallies],
        trigger_mode="multiple",  # one that was abandoned may still be ending
        concurrency_id="blind",
        concurrency_limit=None,
        **PRIVATE,
    )


def _open(
    app: App, view: str, before: Ballot | None, chosen: int | None, *settings: Any
) -> list[Any]:
    """Show a pair when the view opens, and another one when other models answer; what can still be voted on stays."""
    if view != BLIND:
        if before is None or not before.is_waiting:
            return Vote.fill()
        before.abandoned = True
        app.ahead.leave(before.reader)
        return Vote.fill(ballot=None, asked=NO_BALLOT)
    if before and before.goes_on(app, chosen):
        return Vote.fill()
    return _next(app, before, chosen, settings)


def _act(
    app: App, action: str, before: Ballot | None, chosen: int | None, settings: Sequence[Any]
) -> list[Any]:
    """Do what a button says. A click on what was voted on already changes nothing."""
    if action in get_args(Choice) and action in CHOICES.values():
        return _voted(app, before, action)
    if action == "skip" and before and before.deck_id and not before.choice:
        try:
            before.vote(app, "skipped")
        except UserError as error:
            return Vote.fill(stage=render_vote.refused(error.message, error.hint))
    if action == "again" and before and before.failure:
        before.failure = None
        for asked in before.asked:
            app.ahead.forget(asked)
        return _shown(app, before, before)
    return _next(app, before, chosen, settings) if action in ("next", "skip") else Vote.fill()


def _voted(app: App, ballot: Ballot | None, choice: Any) -> list[Any]:
    if ballot is None or not ballot.written or ballot.choice:
        return Vote.fill()
    try:
        ballot.vote(app, choice)
    except UserError as error:
        return Vote.fill(stage=render_vote.refused(error.message, error.hint))
    return Vote.fill(stage=render_vote.stage(ballot), tallies=_tallies(app, ballot.run_id))


def _next(
    app: App, before: Ballot | None, chosen: int | None, settings: Sequence[Any]
) -> list[Any]:
    """Show the next pair of the deck, or say why there is none."""
    run = app.context_run(chosen)
    try:
        pairs = ballots.pairs_there(app, run)
        ballot = ballots.next_of_deck(app, run, settings) if run and pairs else None
    except UserError as error:
        return _without_ballot(app, run, before, render_vote.refused(error.message, error.hint))
    if ballot:
        return _shown(app, ballot, before)
    if not pairs:
        return _without_ballot(app, run, before, render_vote.nothing_to_compare())
    return _without_ballot(app, run, before, render_vote.through(len(deck_cards()), len(pairs)))


def _ask(
    app: App, message: str, before: Ballot | None, chosen: int | None, *settings: Any
) -> list[Any]:
    """Let two hidden models answer a person's own question; the pair of the deck comes again afterwards."""
    run = app.context_run(chosen)
    if run is None or not ballots.pairs_there(app, run):
        return Vote.fill(problem=render_vote.nothing_to_compare())
    try:
        ballot = ballots.of_message(app, run, message or "", settings)
    except UserError as error:
        return Vote.fill(problem=notice("failed", error.message, error.hint))
    return _shown(app, ballot, before, message="", problem="")


def _shown(app: App, ballot: Ballot, before: Ballot | None, **others: Any) -> list[Any]:
    """Show a ballot; what is there already is shown at once, and `_answers` waits for the rest."""
    ballot.show_after(before)
    ballot.collect(app)
    return Vote.fill(
        ballot=ballot,
        asked=ballot.id,
        stage=render_vote.stage(ballot),
        tallies=_tallies(app, ballot.run_id),
        **others,
    )


def _without_ballot(app: App, run: Run | None, before: Ballot | None, said: Html) -> list[Any]:
    if before:
        before.abandoned = True
        app.ahead.leave(before.reader)
    shown = _tallies(app, run.id) if run else ""
    return Vote.fill(ballot=None, asked=NO_BALLOT, stage=said, tallies=shown)


def _answers(app: App, ballot: Ballot | None) -> Iterator[list[Any]]:
    """Wait until both answers are there or one cannot come, and have the next ones made. Yields stage and tallies."""
    nothing = [gr.skip(), gr.skip()]
    yield nothing  # a listener that yields nothing would empty the stage
    if ballot is None or ballot.abandoned:
        return
    has_waited = ballot.is_waiting
    if has_waited:
        ballot.admit(app)
    app.ahead.want(ballot.reader, ballot.asked if ballot.is_waiting else [], ballot.later)
    try:
        while ballot.is_waiting:
            time.sleep(WAIT_S)
            yield nothing  # tells whether the page is still open
            app.ahead.look(ballot.reader)
            ballot.collect(app)
    finally:
        if ballot.is_waiting:
            app.ahead.leave(ballot.reader)
    if has_waited and not ballot.abandoned:
        yield [render_vote.stage(ballot), _tallies(app, ballot.run_id)]


def _tallies(app: App, run_id: int) -> Html:
    return render_vote.votes_on(tallies(app.store.votes.outcomes(run_id)))
