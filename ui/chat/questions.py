"""Whatever asks a question: Send, an example, the last question edited or asked again. Each makes a Turn, or says why
not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.app_state import App, Outputs
from ui.chat.composer import IN_TURN, SEND, STOP
from ui.chat.keep import exchanges_of
from ui.chat.render import loading
from ui.chat.render_history import run_is_gone
from ui.chat.turn import Turn, before_turn, column, models_behind
from ui.html import Precision, notice
from ui.requests import Question
from upq.errors import UserError


@dataclass
class Sent(Outputs):
    """What changes as soon as a question is asked, or edited. asked: the id of its Turn; draft: the text that waits
    while the last question is edited, else None; announced: what a screen reader says.
    """

    turn: gr.State
    asked: gr.State
    draft: gr.State
    message: gr.Textbox
    send: gr.Button
    problem: gr.HTML
    keep: gr.Button
    examples: gr.Row
    seed: gr.Number
    announced: gr.HTML


def press(app: App, label: str, before: Turn | None, *values: Any) -> list[Any]:
    """What the one button does is what it said when it was pressed: ask, or stop all columns."""
    if label == SEND:
        return send(app, before, *values)
    if before:
        before.stop_all()
    return Sent.fill()


def send(
    app: App, before: Turn | None, chosen: int | None, draft: str | None, *form: Any
) -> list[Any]:
    """Ask what is in the message box; with a draft it takes the place of the last question, and the draft comes back.

    form: the message, whether the columns take turns, the system prompt, and how answers are drawn.
    """
    changes = _asked(app, before, chosen, form, replaces=draft is not None)
    if "turn" in changes:
        changes |= {"message": draft or "", "draft": None, "keep": gr.update(visible=False)}
    return Sent.fill(**changes)


def example(app: App, text: str, before: Turn | None, chosen: int | None, *form: Any) -> list[Any]:
    """Ask an example; what is in the message box stays there."""
    return Sent.fill(**_asked(app, before, chosen, (text, *form[1:]), replaces=False))


def again(app: App, before: Turn | None, chosen: int | None, *form: Any) -> list[Any]:
    """Ask the last question again, with the settings as they are now, and where answers are drawn at random with the
    next seed.
    """
    if before is None or not before.is_over:
        return Sent.fill()
    _, *settings, seed, penalty = form
    if before.decoding.temperature and seed == before.decoding.seed:
        seed += 1
    form = (before.message, *settings, seed, penalty)
    return Sent.fill(**_asked(app, before, chosen, form, replaces=True), seed=seed)


def edit(before: Turn | None, draft: str | None, message: str) -> list[Any]:
    """Put the last question into the message box; what was there waits."""
    if before is None or not before.is_over:
        return Sent.fill()
    return Sent.fill(
        message=before.message,
        draft=message if draft is None else draft,
        problem=notice("empty", "This is your last question.", "Send asks it in its place."),
        keep=gr.update(visible=True),
    )


def keep(draft: str | None) -> list[Any]:
    """Leave the last question as it was."""
    return Sent.fill(message=draft or "", draft=None, problem="", keep=gr.update(visible=False))


def _asked(
    app: App, before: Turn | None, chosen: int | None, form: tuple[Any, ...], *, replaces: bool
) -> dict[str, Any]:
    """Start a turn; return what changes, by the names of Sent: nothing while the turn before is not over.

    The turn goes on where the one before ended, or in its place; if other models answer now the columns start over.
    """
    message, mode, system, *decoding = form
    run = app.context_run(chosen)
    run_id = run.id if run else None
    models = models_behind(app, run_id)
    goes_on = before is not None and before.goes_on_with(models)
    if before and goes_on and not before.is_over:
        return {}
    if before and goes_on and before.is_gone:
        return {"problem": run_is_gone(before.run_id)}
    try:
        question = Question.at([message or "", system or "", *decoding])
        turn = Turn(
            message=question.message,
            system=question.system,
            decoding=question.decoding,
            one_at_a_time=mode == IN_TURN,
            run_id=run_id,
            models=models,
            **_past(before if goes_on else None, replaces),
        )
    except UserError as error:
        return {"problem": notice("failed", error.message, error.hint)}
    if before and not goes_on:
        before.abandon()
    changes = {
        "turn": turn,
        "asked": turn.id,
        "send": gr.update(value=STOP, variant="stop"),
        "problem": "",
        "examples": gr.update(visible=False),
    }
    to_load: list[Precision] = [name for name in models if not column(app, name, run_id).is_loaded]
    return changes | ({"announced": loading(to_load)} if to_load else {})


def _past(before: Turn | None, replaces: bool) -> dict[str, Any]:
    """What a turn takes over from the one before, or from the one that it replaces, by the names of Turn."""
    if before is None:
        return {}
    return {
        "histories": before_turn(before.histories, before.number)
        if replaces
        else dict(before.histories),
        "earlier": before.earlier if replaces else exchanges_of(before),
        "thread": before.thread,
    }
