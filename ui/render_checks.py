"""The checks: totals, bars per instruction type, flips and the prompts, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ui.html import Html, join, tag
from ui.render import notice, table
from ui.words import NO_VALUE, PRECISIONS, percent, plural
from upq.checks import PromptResult, Verdict, by_type, flips, totals

Filter = Literal["all", "flipped", "failed"]
Results = Mapping[str, Sequence[PromptResult]]


def totals_table(results: Results) -> Html:
    """IFEval's four scores a precision, with the margin of the strict prompt score."""
    if not results:
        return notice("empty", "No results yet.", "Choose a suite and press Run.")
    head = (
        "",
        "prompt strict",
        "prompt loose",
        "instr. strict",
        "instr. loose",
        "prompts",
        "instr.",
    )
    rows = [_totals_row(precision, results[precision]) for precision in _order(results)]
    return table(head, rows, numeric=range(1, 7), class_="totals")


def _totals_row(precision: str, results: Sequence[PromptResult]) -> list[object]:
    total = totals(results)
    margin = tag("small", f" ± {100 * total.margin_prompt_strict:.1f}")
    return [
        tag("b", precision, class_=precision.lower()),
        join([percent(total.prompt_strict), margin]),
        percent(total.prompt_loose),
        percent(total.instruction_strict),
        percent(total.instruction_loose),
        f"{total.n:,}",
        f"{total.n_instructions:,}",
    ]


def _order(results: Results) -> list[str]:
    return [precision for precision in PRECISIONS if results.get(precision)]


def type_bars(results: Results) -> Html:
    """Share of instructions followed strictly, one group of bars an instruction type."""
    counts = {precision: by_type(results[precision]) for precision in _order(results)}
    types = sorted({name for one in counts.values() for name in one})
    groups = [
        tag(
            "div",
            tag("span", name.replace(":", ": ").replace("_", " "), class_="type-name"),
            tag(
                "div", *(_type_bar(precision, counts[precision].get(name)) for precision in counts)
            ),
        )
        for name in types
    ]
    return tag("div", *groups, class_="type-bars") if groups else Html()


def _type_bar(precision: str, count: tuple[int, int] | None) -> Html:
    followed, judged = count or (0, 0)
    share = followed / judged if judged else 0.0
    fill = tag("i", class_=precision.lower(), style=f"width:{100 * share:.1f}%")
    label = f"{followed} of {judged}" if judged else "not judged"
    return tag("div", tag("b", precision), tag("span", fill, class_="track"), tag("em", label))


def flip_line(results: Results, before: str = "FP16", after: str = "INT2") -> Html:
    """How many prompts changed sides between two precisions, both ways."""
    if not results.get(before) or not results.get(after):
        return Html()
    lost, gained = flips(results[before], results[after])
    return tag(
        "p",
        tag("b", "Flips "),
        f"{before} ✓ → {after} ✗ ",
        tag("strong", len(lost)),
        f" · {before} ✗ → {after} ✓ ",
        tag("strong", len(gained)),
        class_="flips",
    )


def chosen_keys(results: Results, choice: Filter) -> list[int]:
    """Keys of the prompts to list, in suite order."""
    keys = list(dict.fromkeys(one.key for name in _order(results) for one in results[name]))
    strict = {name: {one.key: one.strict for one in results[name]} for name in _order(results)}
    if choice == "flipped":
        return [key for key in keys if len({one.get(key) for one in strict.values()} - {None}) > 1]
    if choice == "failed":
        return [key for key in keys if any(one.get(key) is False for one in strict.values())]
    return keys


def prompt_list(results: Results, prompts: Mapping[int, str], choice: Filter, limit: int) -> Html:
    """The chosen prompts with a chip for each instruction and precision; answers fold out."""
    if not results:
        return Html()
    keys = chosen_keys(results, choice)
    if not keys:
        return notice("empty", f"No {choice} prompts.", "Choose another filter.")
    by_key = {name: {one.key: one for one in results[name]} for name in _order(results)}
    rows = [_prompt(key, prompts.get(key, f"prompt {key}"), by_key) for key in keys[:limit]]
    shown = f"{min(limit, len(keys))} of {plural(len(keys), 'prompt')}"
    return tag("div", tag("p", shown, class_="hint"), *rows, class_="prompts")


def _prompt(key: int, prompt: str, by_key: Mapping[str, Mapping[int, PromptResult]]) -> Html:
    found = [(name, results[key]) for name, results in by_key.items() if key in results]
    sides = tag("span", *(_outcome(name, result) for name, result in found), class_="sides")
    answers = [_answer(name, result) for name, result in found]
    summary = tag("summary", tag("span", prompt, class_="prompt-text"), sides)
    body = tag("div", *answers, class_="answers")
    return tag("details", summary, tag("p", prompt, class_="prompt-full"), body)


def _outcome(name: str, result: PromptResult) -> Html:
    mark = {True: "✓", False: "✗", None: NO_VALUE}[result.strict]
    state = {True: "passed", False: "failed", None: "unjudged"}[result.strict]
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
    """Instruction types that this machine cannot judge, and why."""
    missing = {name: reason for name, reason in types.items() if reason}
    if not missing:
        return tag("p", f"All {len(types)} instruction types can be judged here.", class_="hint")
    items = [tag("li", tag("b", name), ": ", reason) for name, reason in missing.items()]
    count = plural(len(missing), "instruction type")
    return tag("div", tag("p", f"{count} cannot be judged here:"), tag("ul", *items), class_="hint")
