"""From a turn of the chat to what is kept of it, and back: the conversation in the database, and as a file.

A turn is kept when its last column is through, or when its page is closed in the middle: then with what was said so
far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ui.app_state import App
from ui.chat.render import Message
from ui.chat.render_history import page
from ui.chat.turn import Progress, Turn, answer, models_behind
from ui.header import NO_RUN
from ui.html import PRECISIONS, Precision
from upq.decode import Decoding
from upq.errors import UserError
from upq.store import Answer, Author, Content, Conversation, Exchange, as_lines, as_markdown

#: The ending of a file -> what it is called, and what writes it.
FILES = {
    "md": ("Markdown", as_markdown),
    "jsonl": ("JSON lines", as_lines),
    "html": ("HTML", page),
}
#: Bits of a weight of FP16.
FP16_BITS = 16.0


def kept_answer(app: App, precision: Precision, turn: Turn) -> Iterator[Progress]:
    """Yield what a column shows, as `answer` does, and keep the conversation in the end."""
    is_through = False
    try:
        history = turn.histories.get(precision, [])
        for progress in answer(app, turn, precision, turn.run_id, history):
            if progress.answer:
                turn.answers[precision] = progress.answer
            yield progress
        is_through = True
    finally:
        if turn.is_over or not is_through:
            keep(app, turn)


def keep(app: App, turn: Turn) -> None:
    """Keep the conversation up to this turn; what keeps it from being kept is told in the thread."""
    thread = turn.thread
    with thread.lock:
        if thread.is_deleted or not turn.answers:
            return
        try:
            content = Content(
                run_id=turn.run_id,
                authors=authors_of(app, turn),
                exchanges=exchanges_of(turn),
            )
            thread.place = app.store.conversations.save(content, thread.place)
            thread.trouble = None
        except UserError as error:
            thread.trouble = error


def exchanges_of(turn: Turn) -> list[Exchange]:
    """The questions of a conversation with their answers, this turn's the last."""
    answers: dict[Precision, Answer] = {
        name: _answer(turn.answers[name]) for name in PRECISIONS if name in turn.answers
    }
    exchange = Exchange(
        question=turn.message,
        system=turn.system,
        decoding=dataclasses.asdict(turn.decoding),
        answers=answers,
    )
    return [*turn.earlier, exchange]


def _answer(message: Message) -> Answer:
    return Answer.model_validate({**message, "finish": message.get("finish") or "cancelled"})


def authors_of(app: App, turn: Turn) -> dict[Precision, Author]:
    """What is known of the models of a turn, by precision."""
    run = app.store.run(turn.run_id) if turn.run_id else None
    source = run.model if run else "bundled"
    authors = {"FP16": Author(model=source, bits_per_weight=FP16_BITS)}
    for row in app.store.artifacts(run.id) if run else ():
        authors[row.precision] = Author(
            model=source, method=run.method if run else "", bits_per_weight=row.bits_per_weight
        )
    return {name: authors[name] for name in PRECISIONS if name in authors}


def opened(app: App, conversation: Conversation, chosen: int | None) -> tuple[Turn, int | None]:
    """The turn that a kept conversation goes on from, and the run to choose for it.

    If its run is gone the choice stays, and the turn can only be read. Raises UserError: bad_decoding, where the
    settings are no settings.
    """
    content, (*earlier, last) = conversation.content, conversation.content.exchanges
    run_id, is_gone = content.run_id, False
    if run_id is not None:
        try:
            app.store.run(run_id)
        except UserError:
            is_gone = True
    choice = chosen if is_gone else (run_id or NO_RUN)
    turn = Turn(
        message=last.question,
        system=last.system,
        decoding=decoding_of(last.decoding),
        one_at_a_time=False,
        run_id=run_id,
        models=models_behind(app, choice),
        histories=_histories(content.exchanges),
        earlier=earlier,
        answers={name: _message(answer) for name, answer in last.answers.items()},
        is_gone=is_gone,
    )
    turn.thread.place = conversation.place
    for event in turn.done.values():
        event.set()
    return turn, choice


def decoding_of(values: Mapping[str, Any]) -> Decoding:
    """How answers are drawn; a setting that this version does not have is left out."""
    known = {setting.name for setting in dataclasses.fields(Decoding)}
    return Decoding(**{name: value for name, value in values.items() if name in known})


def _histories(exchanges: Sequence[Exchange]) -> dict[Precision, list[Message]]:
    histories: dict[Precision, list[Message]] = {}
    for number, exchange in enumerate(exchanges, 1):
        question: Message = {"role": "user", "content": exchange.question, "turn": number}
        for precision, said in exchange.answers.items():
            histories.setdefault(precision, []).extend([question, _message(said)])
    return histories


def _message(said: Answer) -> Message:
    """An answer as the columns have it; what is not known of it is left out."""
    known = said.model_dump(exclude_defaults=True)
    message = {"role": "assistant", "finish": said.finish, "tokens": said.tokens, **known}
    return cast(Message, message)


def write_file(
    folder: Path, conversation: Conversation, ending: str, only: int | None = None
) -> Path:
    """Write a conversation, or one question of it, as a file to take along. ending: a key of FILES."""
    _, text = FILES[ending]
    question = "" if only is None else f"-question-{only}"
    path = folder / f"upq-conversation-{conversation.head.id}{question}.{ending}"
    path.write_text(text(conversation, only), encoding="utf-8")
    return path
