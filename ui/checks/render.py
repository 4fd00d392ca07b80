"""The checks: scores, bars per kind of item, flips and the prompts, as pure functions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ui.checks.choices import Filter, Results
from ui.html import NO_VALUE, PRECISIONS, Html, join, notice, plural, table, tag
from upq.evaluation import (
    LETTERS,
    Ending,
    Marked,
    PromptResult,
    Question,
    Share,
    Verdict,
    by_category,
    by_subject,
    by_type,
    scores,
)
from upq.store import Run

#: Filter -> what it says where it has nothing to list.
NOTHING: Mapping[Filter, tuple[str, str]] = {
    "flipped": (
        "Nothing flipped.",
        "The models passed what FP16 passed, and failed what it failed.",
    ),
    "lost": ("Nothing was lost.", "What FP16 passed, the other models passed too."),
    "gained": ("Nothing was gained.", "What FP16 failed, the other models failed too."),
    "cut": ("No answer was cut.", "The models ended all of their answers themselves."),
    "repeats": ("No answer repeats itself.", "None ends in one thing said over and over."),
    "failed": ("Nothing failed.", "The models passed everything that could be judged."),
    "all": ("Nothing to list.", "The first answers have not come yet."),
}


def hint(text: str) -> Html:
    """Draw a line in small grey letters."""
    return tag("p", text, class_="hint")


def scores_table(suite: str, results: Results) -> Html:
    """Draw a row of scores for each precision: 95 % intervals below each score, and the test against FP16."""
    if not results:
        return notice("empty", "No results yet.", "Choose a suite and press Run.")
    found = scores.rows(suite, results)
    rows = [scores.readable(suite, row) for row in found]
    titles = [name for name in list(rows[0])[1:] if any(row[name] for row in rows)]
    head = ("", *titles)
    cells = [[_model(row["model"]), *(_score(row[name]) for name in titles)] for row in rows]
    note = "In brackets 95 % intervals."
    if "p" in rows[0] and len(rows) > 1:
        note += (
            " Lost: only FP16 is right; gained: the reverse; p: how likely a split at least as"
            " uneven is between equally good models (McNemar)."
        )
    if any(row.get("endings") for row in found):
        note += (
            " Cut: answers that ended only because they were as long as is allowed; one that was passed by then"
            " counts, as IFEval's rules have it. Repeats: answers that end in one thing said over and over."
        )
    whole = table(head, cells, numeric=range(1, len(head)), class_="totals")
    return join([whole, hint(note)])


def unfinished(run: Run, results: Results) -> Html | None:
    """Say how far a check got that is not done, since its figures are of that part; None where there are none."""
    found = sum(map(len, results.values()))
    if run.state == "done" or not found:
        return None
    return notice(
        "empty", f"These figures are of the first {found:,} of {run.stage_total:,} answers."
    )


def _model(precision: str) -> Html:
    return tag("b", precision, class_=precision.lower())


def _score(text: str) -> Html | str:
    value, bracket, interval = text.partition(" [")
    return join([value, tag("small", bracket, interval)]) if bracket else text or NO_VALUE


def _order(results: Results) -> list[str]:
    return [precision for precision in PRECISIONS if results.get(precision)]


def bars(suite: str, results: Results) -> Html:
    """Draw the share of items passed, one group of bars for each instruction type or subject."""
    if suite == "wikitext2":
        return hint("A perplexity is of the whole text; there is nothing to list.")
    counts = {precision: _groups(suite, results[precision]) for precision in _order(results)}
    names = list(dict.fromkeys(name for shares in counts.values() for name in shares))
    groups = [
        tag(
            "div",
            tag("span", name.replace(":", ": ").replace("_", " "), class_="type-name"),
            tag("div", *(_bar(precision, counts[precision].get(name)) for precision in counts)),
        )
        for name in names
    ]
    return tag("div", *groups, class_="type-bars") if groups else Html()


def _groups(suite: str, own: Sequence[Any]) -> dict[str, Share]:
    if suite != "mmlu":
        return by_type(own)
    return {f"All {name}": share for name, share in by_category(own).items()} | by_subject(own)


def _bar(precision: str, share: Share | None) -> Html:
    shown = share or Share(0, 0)
    fill = tag("i", class_=precision.lower(), style=f"width:{100 * shown.value:.1f}%")
    label = f"{shown.passed} of {shown.of}" if shown.of else "not judged"
    return tag("div", tag("b", precision), tag("span", fill, class_="track"), tag("em", label))


def flip_line(suite: str, results: Results) -> Html:
    """Tell how many items changed sides between FP16 and each other precision, both ways, and how sure that is."""
    if suite == "wikitext2":
        return Html()
    rows = [row for row in scores.rows(suite, results) if "p" in row]
    lines = [
        tag(
            "p",
            tag("b", "Flips "),
            f"FP16 ✓ → {row['precision']} ✗ ",
            tag("strong", row["lost"]),
            f" · FP16 ✗ → {row['precision']} ✓ ",
            tag("strong", row["gained"]),
            f" · p {scores.p_value(row['p'])}",
            class_="flips",
        )
        for row in rows
    ]
    return join(lines)


def prompt_list(
    results: Results,
    asked: Mapping[Hashable, str | Question],
    kind: Filter,
    keys: Sequence[Hashable],
    limit: int,
) -> Html:
    """Draw the first `limit` of these prompts or questions with a mark for each precision; the answers fold out.

    kind is the filter that chose the keys.
    """
    if not results:
        return Html()
    if not keys:
        return notice("empty", *NOTHING[kind])
    by_key = {
        name: {scores.item(outcome)[0]: outcome for outcome in results[name]}
        for name in _order(results)
    }
    rows = []
    for key in keys[:limit]:
        found = {name: own[key] for name, own in by_key.items() if key in own}
        text = asked.get(key, f"prompt {key}")
        rows.append(_question(text, found) if isinstance(text, Question) else _prompt(text, found))
    shown = f"{min(limit, len(keys))} of {plural(len(keys), 'prompt')}"
    return tag("div", tag("p", shown, class_="hint"), *rows, class_="prompts")


def _prompt(prompt: str, found: Mapping[str, Any]) -> Html:
    answers = [
        _answer(name, outcome)
        for name, outcome in found.items()
        if isinstance(outcome, PromptResult)
    ]
    body = tag("div", *answers, class_="answers")
    return tag(
        "details", _summary(prompt, found), tag("p", prompt, class_="prompt-full", dir="auto"), body
    )


def _question(asked: Question, found: Mapping[str, Marked]) -> Html:
    """Draw a question of MMLU: the choices, the right one marked, and who took which."""
    takers = {
        index: [_model(name) for name, marked in found.items() if marked.choice == index]
        for index in range(len(asked.choices))
    }
    choices = [
        tag(
            "li",
            tag("b", f"{'✓ ' if index == asked.answer else ''}{LETTERS[index]}"),
            f" {text} ",
            *(join([" ", taker]) for taker in takers[index]),
            class_="passed" if index == asked.answer else None,
        )
        for index, text in enumerate(asked.choices)
    ]
    subject = asked.subject.replace("_", " ")
    full = tag("p", f"{subject}: {asked.question}", class_="prompt-full", dir="auto")
    return tag(
        "details", _summary(asked.question, found), full, tag("ul", *choices, class_="chips")
    )


def _summary(text: str, found: Mapping[str, Any]) -> Html:
    sides = tag("span", *(_side(name, outcome) for name, outcome in found.items()), class_="sides")
    return tag("summary", tag("span", text, class_="prompt-text", dir="auto"), sides)


def _side(name: str, outcome: PromptResult | Marked) -> Html:
    """Draw a model's verdict in the line of a prompt, and how its answer ended where that was not as it should."""
    _, passed = scores.item(outcome)
    mark = {True: "✓", False: "✗", None: NO_VALUE}[passed]
    state = {True: "passed", False: "failed", None: "unjudged"}[passed]
    ending = outcome.ending if isinstance(outcome, PromptResult) else None
    words = [tag("small", " ", word) for word in _short_ending(ending)]
    return tag(
        "span", tag("b", name, class_=name.lower()), " ", mark, *words, class_=f"side {state}"
    )


def _short_ending(ending: Ending | None) -> list[str]:
    if ending is None:
        return []
    return ["cut"] * ending.is_cut + ["repeats"] * ending.repeats


def _answer(name: str, result: PromptResult) -> Html:
    title = tag("h3", name, class_=name.lower())
    chips = tag(
        "ul", *(_chip(verdict, result.is_cut) for verdict in result.verdicts), class_="chips"
    )
    text = tag("div", result.response or "(an empty answer)", class_="text", dir="auto")
    return tag("section", title, _ending_chips(result.ending), chips, text)


def _ending_chips(ending: Ending | None) -> Html | None:
    """Draw how an answer ended: that it was cut, and that it repeats itself, which are two things."""
    if ending is None:
        return None
    words = [f"cut at {plural(ending.tokens, 'token')}"] * ending.is_cut
    words += ["repeats itself"] * ending.repeats
    chips = words or [plural(ending.tokens, "token")]
    kind = "ending warns" if words else "ending"
    return tag("p", *(tag("span", chip) for chip in chips), class_=kind)


def _chip(verdict: Verdict, is_cut: bool) -> Html:
    name = verdict.instruction_id.split(":")[-1].replace("_", " ")
    if verdict.strict is None:
        return tag("li", tag("b", f"{NO_VALUE} {name}"), " ", verdict.reason, class_="unjudged")
    marks = f"{'✓' if verdict.strict else '✗'}{'✓' if verdict.loose else '✗'}"
    state = "passed" if verdict.strict else "failed"
    hint = f"strict {'followed' if verdict.strict else 'not followed'}, "
    hint += f"loose {'followed' if verdict.loose else 'not followed'}"
    although = tag("em", " passed, cut") if verdict.strict and is_cut else None
    chip = tag("b", f"{marks} {name}", title=hint)
    return tag("li", chip, although, " ", verdict.reason, class_=state)


def unavailable_types(types: Mapping[str, str | None]) -> Html:
    """List the instruction types that this machine cannot judge, and why."""
    missing = {name: reason for name, reason in types.items() if reason}
    if not missing:
        return tag("p", f"All {len(types)} instruction types can be judged here.", class_="hint")
    items = [tag("li", tag("b", name), ": ", reason) for name, reason in missing.items()]
    count = plural(len(missing), "instruction type")
    return tag("div", tag("p", f"{count} cannot be judged here:"), tag("ul", *items), class_="hint")
