"""The Token KL view and the verdicts on instructions, as pure functions.

Each piece of the answer holds all that is told of it as plain HTML; the style sheet shows it while somebody points at
the piece or has it in focus, at a place that is kept free for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ui.html import Html, fixed, join, standalone, table, tag
from upq.compare import REFERENCE, Comparison, Instruction, Outcome, Report, Seen, TextPiece, shown

#: From how many nats on a piece is shaded by which step.
STEPS = (0.1, 0.5, 2.0)
#: Whose KL shades the answer where more than one model reads it.
WORSE = "the worse of both"
MEANING = (
    "KL tells how far a model's guess of the next token is from FP16's, in nats: 0 is the same guess. All models read"
    " the same answer, and nothing is written."
)
HOW_TO = "Point at a piece of the answer, or go through it with the arrow keys."
#: The same in a file, which has no script.
HOW_TO_IN_FILE = "Point at a piece of the answer, or go through it with the Tab key."


def token_view(report: Report, *, in_file: bool = False) -> Html:
    """Draw one answer with what each model thinks of it. in_file: where there is no script."""
    comparison = report.comparison
    reached = [piece.start == 0 or in_file for piece in comparison.pieces]
    words = [
        _piece(comparison, piece, is_reached=is_reached)
        for piece, is_reached in zip(comparison.pieces, reached, strict=True)
    ]
    name = f"Tokens of {report.source}'s answer"
    text = tag("div", *words, class_="tokens", role="listbox", dir="auto", aria_label=name)
    hint = HOW_TO_IN_FILE if in_file else HOW_TO
    place = tag("div", tag("p", hint, class_="hint"), class_="told")
    remarks = [tag("p", words, class_="hint") for words in report.remarks]
    return join(
        [
            tag("p", report.question, class_="question", dir="auto"),
            tag("p", MEANING, class_="hint"),
            tag("div", text, place, class_="reading"),
            *remarks,
            _legend(has_key=not in_file),
            _summary(report),
        ]
    )


def page(report: Report, precision: str) -> str:
    """Return the comparison, shaded by what one precision thinks or by WORSE, as a page that needs nothing else."""
    title = f"Token KL of {report.source}'s answer"
    names = {"model": "model", "method": "method", "bits_per_weight": "bits per weight"}
    rows = [
        [tag("b", name, class_=name.lower()), *(facts.get(key) or "-" for key in names)]
        for name, facts in report.models.items()
    ]
    asked = [tag("p", f"{report.origin}. Drawn with {report.settings}.", class_="hint")]
    if report.system:
        asked += [tag("p", "System prompt: ", tag("q", report.system, dir="auto"), class_="hint")]
    return standalone(
        title,
        tag("header", tag("h1", title, class_="brand long"), *asked),
        tag(
            "section",
            read_by(token_view(report, in_file=True), precision),
            table(["", *names.values()], rows, numeric=[3]),
            class_="card",
        ),
    )


def read_by(view: Html, precision: str) -> Html:
    """Shade a view by what one precision thinks, or by WORSE."""
    by = "worse" if precision == WORSE else precision.lower()
    return tag("div", view, class_="token-view", data_by=by)


def _piece(comparison: Comparison, piece: TextPiece, *, is_reached: bool) -> Html:
    """Draw a piece: its text, shaded by classes for each way of reading, and what is told of its tokens.

    is_reached: by the Tab key.
    """
    places = range(piece.start, piece.end)
    worst = {name: max(seen.kl[at] for at in places) for name, seen in comparison.others.items()}
    steps = {name.lower(): _step(kl) for name, kl in worst.items()}
    steps["worse"] = max(steps.values())
    classes = ["token", *(f"{name}-{step}" for name, step in steps.items() if step)]
    classes += [
        f"flip-{name.lower()}"
        for name, seen in comparison.others.items()
        if any(seen.flipped[piece.start : piece.end])
    ]
    text = tag("i", shown("\n"), class_="break") if "\n" in piece.text else None
    told = [_told(comparison, at) for at in places]
    return tag(
        "span",
        text,
        piece.text,
        tag("span", *told, class_="seen"),
        class_=" ".join(classes),
        role="option",
        tabindex="0" if is_reached else "-1",
    )


def _step(kl: float) -> int:
    return sum(kl >= step for step in STEPS)


def _told(comparison: Comparison, at: int) -> Html:
    """Draw what each model thinks at a token: its likeliest tokens with their probabilities."""
    token = comparison.ids[at]
    name = tag("b", shown(comparison.texts[token]))
    head = tag("span", f"token {at + 1} of {len(comparison.ids)} ", name, class_="seen-head")
    lines = [_line(comparison, precision, seen, at) for precision, seen in comparison.seen.items()]
    return tag("span", head, *lines)


def _line(comparison: Comparison, precision: str, seen: Seen, at: int) -> Html:
    best = [
        tag("span", tag("b", shown(comparison.texts[token])), " ", share_of(share))
        for token, share in seen.likeliest[at]
    ]
    flipped = " \u25bc" if seen.flipped[at] else ""
    kl = "" if precision == REFERENCE else f"KL {fixed(seen.kl[at], 2)}{flipped}"
    name = tag("span", tag("b", precision, class_=precision.lower()), " ", kl)
    return tag("span", name, tag("span", *best, class_="likeliest"), class_="seen-line")


def share_of(share: float) -> str:
    """Write a probability with two decimals and no zero before the point."""
    return "1" if share >= 0.995 else f"{share:.2f}".removeprefix("0")


def _legend(*, has_key: bool) -> Html:
    names = ["below 0.1", *(f"{step:g}" for step in STEPS[:-1]), f"{STEPS[-1]:g} nats and more"]
    steps = [tag("span", tag("i", class_=f"step step-{at}"), name) for at, name in enumerate(names)]
    flip = tag("span", tag("i", "\u25bc"), "another token is the likeliest, underlined as well")
    if has_key:
        key = tag("kbd", "n")
        flip += tag("button", "Next flip ", key, class_="small", data_action="next-flip")
    return tag("div", *steps, flip, class_="kl-legend")


def _summary(report: Report) -> Html:
    """Draw the figures of each model; where the answer was drawn also how often two draws differ."""
    head = ["read by", *report.figures[REFERENCE]]
    rows: list[list[object]] = []
    for name, figures in report.figures.items():
        if name == REFERENCE and not report.is_drawn:
            continue
        label = f"{name}, drawn twice" if name == REFERENCE else name
        rows.append([tag("b", label, class_=name.lower()), *figures.values()])
    return table(head, rows, numeric=range(1, len(head)), class_="kl-summary")


def verdicts(instructions: Sequence[Instruction], judged: Sequence[Mapping[str, Outcome]]) -> Html:
    """Draw which model followed which instruction of the question, and why."""
    lines = [
        tag("li", tag("q", instruction.words, dir="auto"), *_outcomes(outcomes))
        for instruction, outcomes in zip(instructions, judged, strict=True)
    ]
    return tag("section", tag("h3", "Instructions"), tag("ul", *lines), class_="instructions")


def _outcomes(outcomes: Mapping[str, Outcome]) -> list[Html]:
    """A mark and a reason for each model; one reason where no answer can be judged."""
    marks = {True: "\u2713", False: "\u2717", None: "?"}
    kinds = {True: "passed", False: "failed", None: ""}
    unjudged = {one.reason for one in outcomes.values() if one.followed is None}
    if len(unjudged) == 1 and all(one.followed is None for one in outcomes.values()):
        return [tag("span", f"cannot be judged here: {unjudged.pop()}")]
    return [
        tag(
            "span",
            tag("b", name, class_=name.lower()),
            tag("i", f" {marks[one.followed]} ", class_=f"verdict {kinds[one.followed]}"),
            one.reason,
        )
        for name, one in outcomes.items()
    ]
