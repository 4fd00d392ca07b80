"""The blind vote: two answers without a name, then whose they were, and what all votes on the run say.

Before somebody has voted nothing may tell the models apart: no name, size or speed, and no ending that only one has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from ui.chat.ballot import Ballot, Place
from ui.chat.composer import decoding_words
from ui.html import Html, join, markdown, notice, parts, plural, table, tag
from ui.html.votes import SHARE_MEANING, TALLY_HEAD, TALLY_NUMBERS, tally_cells
from upq.evaluation import Tally

#: Key, choice and words of each button.
CHOICES = (
    ("1", "A", "A is better"),
    ("2", "B", "B is better"),
    ("3", "tie", "A tie"),
    ("4", "bad", "Both are bad"),
)
VOTED = {"tie": "You found them alike.", "bad": "You found both bad."}


def nothing_to_compare() -> Html:
    """Say what has to be there before anybody can vote."""
    hint = (
        "Start a run in Quantize, or choose one that is done; then two of its models answer unseen."
    )
    return notice("empty", "There are no two models to compare yet.", hint)


def through(prompts: int, rounds: int) -> Html:
    """Say that the deck is done with these settings."""
    found = f"You are through: {plural(prompts, 'prompt')}, {plural(rounds, 'round')}."
    hint = "Ask questions of your own below, or change the decoding: with other settings the deck begins anew."
    return tag("div", notice("done", found, hint), _buttons(("Look again", "next")))


def refused(message: str, hint: str) -> Html:
    """Say why there is no next pair; it can be tried again."""
    return tag("div", notice("failed", message, hint), _buttons(("Try again", "next")))


def stage(ballot: Ballot) -> Html:
    """Draw a ballot as far as it has come: it waits, can be voted on, was voted on, or has failed."""
    children = [_head(ballot), _question(ballot)]
    if ballot.failure:
        children += [_failure(ballot)]
    elif not ballot.written:
        children += [_waiting()]
    else:
        children += [_answers(ballot), _endings(ballot)]
        children += [_reveal(ballot) if ballot.choice else _choices()]
    return tag("div", *children, class_="blind-stage")


def votes_on(tallies: Sequence[Tally]) -> Html:
    """Draw what all votes on the run say, pair by pair."""
    if not tallies:
        return notice("empty", "No votes on this run yet.")
    drawn = table(
        TALLY_HEAD, list(map(tally_cells, tallies)), numeric=TALLY_NUMBERS, class_="tallies"
    )
    meaning = tag("p", SHARE_MEANING, class_="hint")
    return join([parts.section_title("Votes on this run"), drawn, meaning])


def _head(ballot: Ballot) -> Html:
    is_done = ballot.choice is not None
    where = _place(ballot.place, is_done) if ballot.place else "Your own question"
    return tag(
        "header",
        tag("h3", "Which answer is better?"),
        tag("span", where, class_="place"),
        tag("span", drawn_with(ballot), class_="drawn"),
        class_="blind-head",
    )


def _place(place: Place, is_done: bool) -> str:
    rounds = f" \u00b7 round {place.round} of {place.rounds}" if place.rounds > 1 else ""
    return f"{place.done + is_done} of {place.of} done{rounds}"


def drawn_with(ballot: Ballot) -> str:
    """Say how both answers are drawn."""
    prompt = ", with a system prompt" if ballot.question.system.strip() else ""
    return decoding_words(*astuple(ballot.question.decoding)) + prompt


def _question(ballot: Ballot) -> Html:
    text = tag("div", ballot.question.message, class_="text", dir="auto")
    return tag("div", text, class_="message user", tabindex=-1, data_focus=not ballot.choice)


def _waiting() -> Html:
    said = notice("busy", "Two models answer; both answers appear together.")
    return tag("div", said, _buttons(("Skip", "skip")))


def _failure(ballot: Ballot) -> Html:
    error = ballot.failure
    said = notice("failed", error.message, error.hint) if error else None
    return tag("div", said, _buttons(("Try again", "again"), ("Skip", "skip")))


def _answers(ballot: Ballot) -> Html:
    sides = zip("AB", ballot.shown, ballot.written or (), strict=True)
    drawn = []
    for letter, precision, written in sides:
        name = f"{letter} was {precision}" if ballot.choice else letter
        kind = precision.lower() if ballot.choice else ""
        text = markdown(written.text) or "(an empty answer)"
        drawn.append(
            tag(
                "section",
                tag("h4", name),
                tag("div", text, class_="text", tabindex=0),
                class_=f"message blind-answer {kind}".strip(),
                aria_label=f"Answer {letter}",
            )
        )
    return tag("div", *drawn, class_="blind-answers")


def _endings(ballot: Ballot) -> Html | None:
    """Say that both were cut; of one alone it would tell which model it is."""
    if all(written.finish == "length" for written in ballot.written or ()):
        return tag("p", "Both were stopped at the token limit.", class_="hint")
    return None


def _choices() -> Html:
    buttons = [
        tag("button", tag("kbd", key), words, data_action=choice, data_key=key, class_="small vote")
        for key, choice, words in CHOICES
    ]
    group = tag("div", *buttons, role="group", aria_label="Your vote", class_="blind-choices")
    return tag(
        "div", group, tag("button", "Skip", data_action="skip", class_="link"), class_="blind-bar"
    )


def _reveal(ballot: Ballot) -> Html:
    first, second = ballot.shown
    if ballot.choice == "same":
        said = f"Same answer: {first} and {second} wrote it word for word. Counted apart, without a vote."
    else:
        said = f"A was {first}, B was {second}. {_voted(ballot)}"
    if not ballot.is_first:
        said += " This pair was voted on in another window already; the first vote counts."
    text = tag("p", said, id="blind-reveal", class_="reveal")
    following = tag(
        "button",
        "Next",
        tag("kbd", "n"),
        data_action="next",
        data_key="n",
        data_focus=True,
        aria_describedby="blind-reveal",
        class_="small make",
    )
    return tag("div", text, following, class_="blind-bar")


def _voted(ballot: Ballot) -> str:
    better = dict(zip("AB", ballot.shown, strict=True)).get(ballot.choice or "")
    return f"You found {better} better." if better else VOTED.get(ballot.choice or "", "")


def _buttons(*buttons: tuple[str, str]) -> Html:
    """Draw buttons: words and action."""
    drawn = [tag("button", words, data_action=action, class_="small") for words, action in buttons]
    return tag("div", *drawn, class_="blind-bar")
