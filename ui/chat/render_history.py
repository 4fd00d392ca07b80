"""Kept conversations: the list of them, and one as a page of HTML to take along. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ui.html import (
    METHOD_NAMES,
    Html,
    Precision,
    fixed,
    join,
    markdown,
    model_name,
    notice,
    plural,
    standalone,
    tag,
)
from upq.store import (
    Conversation,
    Exchange,
    Found,
    Headline,
    about,
    drawn_with,
    ending,
    numbered,
    precisions_of,
)


def kept_list(found: Found, searched: str, runs: Mapping[int, str], opened: int | None) -> Html:
    """Draw the conversations that a search found. runs: what the runs that are there are called, by their numbers."""
    if not found.lines and searched.strip():
        return notice("empty", "No conversation holds this text.", "Other words may find it.")
    if not found.lines:
        return notice(
            "empty", "No conversation yet.", "Each is kept here as soon as it is answered."
        )
    lines = [_line(line, runs, opened) for line in found.lines]
    left = found.total - len(found.lines)
    more = _button(f"Show more ({left:,} older)", "more") if left else None
    clear = _button("Delete all", "clear", plural(found.total, "conversation"))
    foot = [more, None if searched.strip() else clear]
    return join([tag("ul", *lines, class_="kept"), tag("p", *foot, class_="actions")])


def _button(words: str, action: str, title: str | None = None) -> Html:
    return tag("button", words, class_="small", data_action=action, data_title=title)


def _line(line: Headline, runs: Mapping[int, str], opened: int | None) -> Html:
    run = "bundled model"
    if line.run_id is not None:
        run = runs.get(line.run_id) or f"run #{line.run_id}, deleted"
    is_open = line.id == opened
    title = tag(
        "button",
        line.title,
        class_="title",
        dir="auto",
        data_action="open",
        data_number=line.id,
    )
    facts = [moment(line.updated_at), " · ", run, " · open now" if is_open else None]
    buttons = [
        tag(
            "button",
            action,
            class_="small",
            data_action=action,
            data_number=line.id,
            data_title=line.title,
            aria_label=f"{action} {line.title}",
        )
        for action in ("rename", "delete")
    ]
    return tag(
        "li",
        tag("div", title, tag("small", *facts)),
        tag("span", *buttons, class_="actions"),
        aria_current="true" if is_open else None,
    )


def moment(at: float) -> Html:
    """Draw a moment in this machine's time, e.g. as "26 Nov 18:43"; with the year where it is another one."""
    local = time.localtime(at)
    this_year = local.tm_year == time.localtime().tm_year
    words = time.strftime("%d %b %H:%M" if this_year else "%d %b %Y %H:%M", local).lstrip("0")
    return tag("time", words, datetime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)))


def page(conversation: Conversation, only: int | None = None) -> str:
    """Return a conversation, or one question of it, as a page that needs nothing else."""
    title = conversation.head.title
    top = tag(
        "header",
        tag("h1", title, class_="brand long", dir="auto"),
        tag("p", f"{about(conversation)}. Kept by UPQ Studio.", class_="hint"),
        tag("dl", *_authors(conversation), class_="facts"),
    )
    questions = [_question(number, exchange) for number, exchange in numbered(conversation, only)]
    return standalone(title, top, *questions)


def _authors(conversation: Conversation) -> list[Html]:
    facts = []
    for precision in precisions_of(conversation):
        author = conversation.content.authors[precision]
        method = METHOD_NAMES.get(author.method, author.method)
        bits = f"{fixed(author.bits_per_weight, 2)} bit"
        words = " · ".join(filter(None, [model_name(author.model), method, bits]))
        name = tag("dt", precision, class_=precision.lower())
        facts.append(tag("div", name, tag("dd", words)))
    return facts


def _question(number: int, exchange: Exchange) -> Html:
    columns = []
    for precision, answer in exchange.answers.items():
        text = tag("div", markdown(answer.content) or "(an empty answer)", class_="text said")
        foot = tag("p", ending(answer), class_="hint")
        head = tag("h4", precision, class_=precision.lower())
        columns.append(tag("div", head, text, foot))
    system = (
        tag("p", "System prompt: ", exchange.system, class_="hint") if exchange.system else None
    )
    return tag(
        "section",
        tag("h2", f"Question {number}"),
        tag("div", exchange.question, class_="message user asked", dir="auto"),
        system,
        tag("div", *columns, class_="answers whole"),
        tag("p", f"Drawn with {drawn_with(exchange)}.", class_="hint"),
        class_="card",
    )


def run_is_gone(run_id: int | None) -> Html:
    """Say that a conversation can only be read."""
    return notice(
        "empty",
        f"Run {run_id} is gone, so this conversation can be read but not gone on with.",
        "New chat asks the models of the run that is chosen above.",
    )


def head_of_gone(precision: Precision) -> Html:
    """Draw the head of a column whose model was deleted with its run."""
    kind = precision.lower()
    line = tag("span", "its run is deleted", class_="line")
    return tag("div", tag("h3", precision, class_=kind), line, class_=f"column-head gone {kind}")


def nothing_kept(precision: Precision) -> Html:
    """Draw a column of a conversation that can only be read, and that this precision took no part in."""
    return notice("empty", f"{precision} took no part in this conversation.", is_told=False)


def link(query: str) -> Html:
    """Draw a link that the page completes by its own address; the moment makes an equal one a new one."""
    box = tag("pre", class_="command", data_query=query, data_at=time.time(), tabindex=0)
    return tag("div", tag("p", "Copy this link:", class_="said", role="status"), box)


def all_deleted(count: int) -> Html:
    """Say that nothing is left."""
    words = "One conversation is" if count == 1 else f"All {count:,} conversations are"
    return notice("done", f"{words} deleted.")


def not_kept(message: str, hint: str) -> Html:
    """Say why a conversation is not kept."""
    return notice("failed", f"This conversation is not kept: {message}", hint)
