"""A kept conversation, or one question of it, as text to take along: Markdown to read, lines of JSON for programs.

What people and models wrote stands in fences in the Markdown, exactly as they wrote it: it never becomes markup there,
so a page that shows the file fetches nothing. ui.chat.render_history draws the same as a page of HTML.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from upq import units
from upq.config import PRECISIONS, PrecisionName
from upq.files import markdown_block, markdown_line, markdown_table
from upq.store.conversations import Answer, Conversation, Exchange

#: How an answer ended, where that is worth a word.
ENDINGS = {
    "length": "stopped at the token limit",
    "cancelled": "stopped by hand",
    "failed": "failed",
}


def as_markdown(conversation: Conversation, only: int | None = None) -> str:
    """The conversation to read. only: the number of the one question to take, from 1 on."""
    head, content = conversation.head, conversation.content
    lines = [f"# {markdown_line(head.title)}", "", f"{about(conversation)}.", ""]
    authors = [(name, content.authors[name]) for name in precisions_of(conversation)]
    table = [
        {
            "precision": precision,
            "model": author.model,
            "method": author.method or "-",
            "bits per weight": f"{author.bits_per_weight:.4g}",
        }
        for precision, author in authors
    ]
    lines.append(markdown_table(table))
    for number, exchange in numbered(conversation, only):
        lines += ["", f"## Question {number}", "", *markdown_block(exchange.question)]
        lines += ["", f"Drawn with {drawn_with(exchange)}."]
        if exchange.system:
            lines += ["", "System prompt:", "", *markdown_block(exchange.system)]
        for precision, answer in exchange.answers.items():
            lines += ["", f"### {precision}", "", *markdown_block(answer.content)]
            lines += ["", f"{ending(answer)}."]
    return "\n".join([*lines, ""])


def as_lines(conversation: Conversation, only: int | None = None) -> str:
    """One line of JSON for each precision and question: all that it takes to ask again, and what was answered."""
    head, content = conversation.head, conversation.content
    lines = []
    for number, exchange in numbered(conversation, only):
        for precision, answer in exchange.answers.items():
            author = content.authors.get(precision)
            line = {
                "conversation": head.id,
                "question": number,
                "precision": precision,
                "run": content.run_id,
                "model": author and author.model,
                "method": author and author.method,
                "bits_per_weight": author and author.bits_per_weight,
                "messages": _messages(content.exchanges[:number], precision),
                "settings": dict(exchange.decoding),
                "seed": exchange.decoding.get("seed"),
                "finish": answer.finish,
                "tokens": answer.tokens,
                "prompt_tokens": answer.prompt_tokens,
            }
            lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def numbered(conversation: Conversation, only: int | None) -> Iterator[tuple[int, Exchange]]:
    """The questions with their numbers, from 1 on: all, or the one that was asked for."""
    for number, exchange in enumerate(conversation.content.exchanges, start=1):
        if only in (None, number):
            yield number, exchange


def precisions_of(conversation: Conversation) -> list[PrecisionName]:
    """The precisions whose models are known, in their usual order."""
    return [name for name in PRECISIONS if name in conversation.content.authors]


def about(conversation: Conversation) -> str:
    """Say where a conversation comes from, e.g. "Conversation 4 with run 3, begun 2026-11-26 18:43 UTC"."""
    head = conversation.head
    run = "the bundled model" if head.run_id is None else f"run {head.run_id}"
    begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(head.created_at))
    return f"Conversation {head.id} with {run}, begun {begun}"


def drawn_with(exchange: Exchange) -> str:
    """Say how the answers to a question were drawn, e.g. "temperature 0, seed 0"."""
    return units.settings(exchange.decoding) or "settings that were not kept"


def ending(answer: Answer) -> str:
    """Say how long an answer is and how it ended."""
    facts = [_plural(answer.tokens, "token"), ENDINGS.get(answer.finish, "")]
    facts += ["repeats itself"] if answer.repeats else []
    if answer.left_out:
        were = "was" if answer.left_out == 1 else "were"
        facts.append(f"{_plural(answer.left_out, 'earlier turn')} {were} not read")
    return ", ".join(filter(None, [*facts, answer.hint.rstrip(".")]))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _messages(exchanges: list[Exchange], precision: PrecisionName) -> list[dict[str, str]]:
    """What a model read for its last answer, and that answer.

    It reads no failed answer and not its question, and of the others not the first ones that had no room.
    """
    *before, last = exchanges
    answered = [(exchange.question, exchange.answers.get(precision)) for exchange in before]
    read = [(asked, answer) for asked, answer in answered if answer and answer.finish != "failed"]
    final = last.answers[precision]
    messages = [{"role": "system", "content": last.system}] if last.system.strip() else []
    for question, answer in [*read[final.left_out :], (last.question, final)]:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer.content})
    return messages
