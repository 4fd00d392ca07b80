"""Conversations for tests: what was said, without a model that says it."""

from __future__ import annotations

from upq.config import PrecisionName
from upq.store import Answer, Author, Content, Conversation, Exchange, Headline, Place

AUTHORS: dict[PrecisionName, Author] = {
    "FP16": Author(model="bundled", bits_per_weight=16.0),
    "INT2": Author(model="bundled", method="rotated_upq", bits_per_weight=2.27),
}


def exchange(question: str, *, answer: str = "because", finish: str = "stop") -> Exchange:
    """A question that FP16 answers with `answer`, and INT2 with the same in capitals."""
    decoding = {"max_new_tokens": 64, "temperature": 0.5, "top_p": 1.0, "seed": 123456789}
    return Exchange(
        question=question,
        system="be brief",
        decoding=decoding,
        answers={
            "FP16": Answer(content=answer, finish=finish, tokens=1, prompt_tokens=9),
            "INT2": Answer(content=answer.upper(), finish=finish, tokens=2, prompt_tokens=9),
        },
    )


def content(*exchanges: Exchange, run_id: int | None = 3) -> Content:
    """What a page knows of a conversation, one question long unless others are given."""
    said = list(exchanges) or [exchange("why?")]
    return Content(run_id=run_id, authors=AUTHORS, exchanges=said)


def conversation(*exchanges: Exchange, title: str = "A title") -> Conversation:
    """A conversation as it is read from the store, number 12, of the 1st of January 2026."""
    head = Headline(12, title, 1767225600.0, 1767229200.0, 3)
    return Conversation(head, content(*exchanges), Place(12, 1))
