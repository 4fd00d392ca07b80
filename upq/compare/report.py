"""A comparison with what was asked, as text to take along: Markdown to read, lines of JSON for programs.

ui.chat.render_compare draws the same as a page of HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from upq import units
from upq.compare.comparison import Comparison
from upq.compare.reading import REFERENCE
from upq.decode import Decoding
from upq.files import markdown_block, markdown_table

MEANING = (
    "The text of each token, and what each model held for the likeliest one at its place, with the probability;"
    " \u25bc where that is another one than FP16's. In front of it the KL to FP16 in nats."
)
#: How white space in the text of a token is written.
VISIBLE = {"\n": "\u21b5", "\t": "\u21e5", " ": "\u00b7"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the models think of an answer, and whose it is.

    source: the precision whose answer was read; decoding: how it was drawn; run: the number of the run, None for the
    bundled model; models: by precision, what is known of the model, by name.
    """

    comparison: Comparison
    question: str
    system: str
    source: str
    decoding: Decoding
    run: int | None
    models: Mapping[str, Mapping[str, Any]]

    @property
    def is_drawn(self) -> bool:
        """Whether it is known how often two draws differ."""
        return self.comparison.seen[REFERENCE].mean_differs is not None

    @property
    def figures(self) -> dict[str, dict[str, str]]:
        """By precision how far it is from FP16, by the name of the figure, as people read it."""
        found = {}
        for name, seen in self.comparison.seen.items():
            figures = {
                "mean KL": units.fixed(seen.mean_kl, 3),
                "KL p95": units.fixed(seen.kl_p95, 2),
                "same likeliest token": units.percent(seen.same_top1),
                "first flip": seen.flip_words,
            }
            found[name] = figures if name != REFERENCE else dict.fromkeys(figures, "")
            if self.is_drawn:
                drawn = f"draws unlike FP16's at temperature {self.decoding.temperature:g}"
                found[name][drawn] = units.percent(seen.mean_differs)
        return found

    @property
    def remarks(self) -> list[str]:
        """What has to be known of the figures, a sentence each."""
        remarks = []
        if self.comparison.is_cut:
            remarks.append(f"Only the first {len(self.comparison.ids):,} tokens were read.")
        if self.comparison.made_anew:
            remarks.append(
                f"The tokens were made of the kept text anew; {self.source} wrote it in others, which are not kept."
            )
        if self.decoding.temperature and self.decoding.repetition_penalty != 1:
            remarks.append(
                "The answer was drawn with a repetition penalty, so how often two draws differ is not told."
            )
        return remarks

    @property
    def settings(self) -> str:
        """Say how the answer was drawn, e.g. "temperature 0, seed 0"."""
        return units.settings(asdict(self.decoding))

    @property
    def origin(self) -> str:
        """Say whose models they are."""
        return "The bundled model" if self.run is None else f"Run {self.run}"


def shown(text: str) -> str:
    """Write the text of a token so that its spaces and line breaks can be seen."""
    return "".join(VISIBLE.get(character, character) for character in text) or "(nothing)"


def as_markdown(report: Report) -> str:
    """The comparison to read: the figures of each model, the question, the answer, and a line for each token."""
    lines = [f"# Token KL of {report.source}'s answer", "", f"{report.origin}.", ""]
    lines += [
        markdown_table(_figures(report)),
        "",
        "## Question",
        "",
        *markdown_block(report.question),
    ]
    lines += ["", f"Drawn with {report.settings}."]
    if report.system:
        lines += ["", "System prompt:", "", *markdown_block(report.system)]
    lines += ["", "## Answer", "", *markdown_block(report.comparison.text)]
    for remark in report.remarks:
        lines += ["", remark]
    lines += ["", "## Tokens", "", MEANING, "", markdown_table(_tokens(report.comparison)), ""]
    return "\n".join(lines)


def as_lines(report: Report) -> str:
    """A line of JSON for the whole, then one for each token."""
    whole = report.comparison.to_json()
    tokens, pieces = whole.pop("by_token"), whole.pop("pieces")
    figures = whole.pop("models")
    models = {name: {**facts, **figures.get(name, {})} for name, facts in report.models.items()}
    head = {
        "kind": "comparison",
        "run": report.run,
        "answer_of": report.source,
        "question": report.question,
        "system": report.system,
        "settings": asdict(report.decoding),
        "models": models,
        "made_anew": report.comparison.made_anew,
        **whole,
        "pieces": pieces,
    }
    lines = [head, *({"kind": "token", "token": at, **one} for at, one in enumerate(tokens, 1))]
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)


def _figures(report: Report) -> list[dict[str, str]]:
    rows = []
    for name, figures in report.figures.items():
        facts = report.models.get(name, {})
        row = {
            "read by": name,
            "model": str(facts.get("model", "")),
            "method": str(facts.get("method") or "-"),
            "bits per weight": f"{facts.get('bits_per_weight', math.nan):.4g}",
        }
        rows.append(row | figures)
    return rows


def _tokens(comparison: Comparison) -> list[dict[str, str]]:
    rows = []
    for at, token in enumerate(comparison.ids):
        row = {"token": str(at + 1), "text": shown(comparison.texts[token])}
        for name, seen in comparison.seen.items():
            [(best, share), *_] = seen.likeliest[at]
            flip = " \u25bc" if seen.flipped[at] else ""
            guess = f"{shown(comparison.texts[best])} {share:.2f}{flip}"
            row[name] = guess if name == REFERENCE else f"{seen.kl[at]:.2f}: {guess}"
        rows.append(row)
    return rows
