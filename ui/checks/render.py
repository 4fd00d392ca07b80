"""The checks: scores, bars per kind of item, flips and the prompts, as pure functions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from ui.html import NO_VALUE, PRECISIONS, Html, join, notice, plural, table, tag
from upq.evaluation import (
    LETTERS,
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

Filter = Literal["all", "flipped", "failed"]
#: Precision -> outcomes in the suite's order, as check_report.outcomes has them.
Results = Mapping[str, Sequence[Any]]


def hint(text: str) -> Html:
    """Draw a line in small grey letters."""
    return tag("p", text, class_="hint")


def scores_table(suite: str, results: Results) -> Html:
    """Draw a row of scores for each precision: 95 % intervals below each score, and the test against FP16."""
    if not results:
        return notice("empty", "No results yet.", "Choose a suite and press Run.")
    rows = [scores.readable(suite, row) for row in scores.rows(suite, results)]
    head = ("", *list(rows[0])[1:])
    cells = [[_model(row["model"]), *map(_score, list(row.values())[1:])] for row in rows]
    note = "In brackets 95 % intervals."
    if "p" in rows[0] and len(rows) > 1:
        note += (
            " Lost: only FP16 is right; gained: the reverse; p: how likely a split at least as"
            " uneven is between equally good models (McNemar)."
        )
    whole = table(head, cells, numeric=range(1, len(head)), class_="totals")
    return join([whole, hint(note)])


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


def _item(outcome: PromptResult | Marked) -> tuple[Hashable, bool | None]:
    """Return what names an item within its suite, and whether it was passed."""
    if isinstance(outcome, Marked):
        return (outcome.subject, outcome.key), outcome.correct
    return outcome.key, outcome.strict


def chosen_keys(results: Results, choice: Filter) -> list[Hashable]:
    """Return the names of the prompts or questions to list, in suite order."""
    passed = {name: dict(map(_item, results[name])) for name in _order(results)}
    keys = list(dict.fromkeys(key for outcomes in passed.values() for key in outcomes))
    verdicts = {key: {outcomes.get(key) for outcomes in passed.values()} for key in keys}
    if choice == "flipped":
        return [key for key in keys if len(verdicts[key] - {None}) > 1]
    if choice == "failed":
        return [key for key in keys if False in verdicts[key]]
    return keys


def prompt_list(
    results: Results, prompts: Mapping[Hashable, str | Question], choice: Filter, limit: int
) -> Html:
    """Draw the chosen prompts or questions with a mark for each precision; what the models answered folds out."""
    if not results:
        return Html()
    keys = chosen_keys(results, choice)
    if not keys:
        return notice("empty", f"No {choice} prompts.", "Choose another filter.")
    by_key = {
        name: {_item(outcome)[0]: outcome for outcome in results[name]} for name in _order(results)
    }
    rows = []
    for key in keys[:limit]:
        found = {name: own[key] for name, own in by_key.items() if key in own}
        asked = prompts.get(key, f"prompt {key}")
        rows.append(
            _question(asked, found) if isinstance(asked, Question) else _prompt(asked, found)
        )
    shown = f"{min(limit, len(keys))} of {plural(len(keys), 'prompt')}"
    return tag("div", tag("p", shown, class_="hint"), *rows, class_="prompts")


def _prompt(prompt: str, found: Mapping[str, Any]) -> Html:
    answers = [
        _answer(name, outcome)
        for name, outcome in found.items()
        if isinstance(outcome, PromptResult)
    ]
    body = tag("div", *answers, class_="answers")
    return tag("details", _summary(prompt, found), tag("p", prompt, class_="prompt-full"), body)


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
    full = tag("p", f"{subject}: {asked.question}", class_="prompt-full")
    return tag(
        "details", _summary(asked.question, found), full, tag("ul", *choices, class_="chips")
    )


def _summary(text: str, found: Mapping[str, Any]) -> Html:
    sides = tag(
        "span",
        *(_outcome(name, _item(outcome)[1]) for name, outcome in found.items()),
        class_="sides",
    )
    return tag("summary", tag("span", text, class_="prompt-text"), sides)


def _outcome(name: str, passed: bool | None) -> Html:
    mark = {True: "✓", False: "✗", None: NO_VALUE}[passed]
    state = {True: "passed", False: "failed", None: "unjudged"}[passed]
    return tag("span", tag("b", name, class_=name.lower()), " ", mark, class_=f"side {state}")


def _answer(name: str, result: PromptResult) -> Html:
    chips = tag("ul", *(_chip(verdict) for verdict in result.verdicts), class_="chips")
    text = tag("div", result.response or "(an empty answer)", class_="text")
    return tag("section", tag("h4", name, class_=name.lower()), chips, text)


def _chip(verdict: Verdict) -> Html:
    name = verdict.instruction_id.split(":")[-1].replace("_", " ")
    if verdict.strict is None:
        return tag("li", tag("b", f"{NO_VALUE} {name}"), " ", verdict.reason, class_="unjudged")
    marks = f"{'✓' if verdict.strict else '✗'}{'✓' if verdict.loose else '✗'}"
    state = "passed" if verdict.strict else "failed"
    hint = f"strict {'followed' if verdict.strict else 'not followed'}, "
    hint += f"loose {'followed' if verdict.loose else 'not followed'}"
    return tag("li", tag("b", f"{marks} {name}", title=hint), " ", verdict.reason, class_=state)


def unavailable_types(types: Mapping[str, str | None]) -> Html:
    """List the instruction types that this machine cannot judge, and why."""
    missing = {name: reason for name, reason in types.items() if reason}
    if not missing:
        return tag("p", f"All {len(types)} instruction types can be judged here.", class_="hint")
    items = [tag("li", tag("b", name), ": ", reason) for name, reason in missing.items()]
    count = plural(len(missing), "instruction type")
    return tag("div", tag("p", f"{count} cannot be judged here:"), tag("ul", *items), class_="hint")
