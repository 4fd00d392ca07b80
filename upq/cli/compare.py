"""`python -m upq compare`: an answer with marks where other precisions part from it, and figures below it."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from upq.compare import REFERENCE, Comparison
from upq.files import clean_text
from upq.jobs.compared import Compared
from upq.units import NO_VALUE, percent

#: What stands behind a token at which a precision would have gone on with another one.
MARKS = {"INT4": "\u2074", "INT2": "\u00b2"}
#: Tokens of the largest KL that are listed.
WORST = 5


def page(found: Compared) -> str:
    """All that the command prints."""
    comparison, source = found.comparison, found.request.answer_of
    tokens = f"{len(comparison.ids)} tokens" + (
        ", the rest was not read" if comparison.is_cut else ""
    )
    legend = [f"{MARKS[name]} {name} would go on otherwise" for name in comparison.others]
    parts = [
        f"{source}'s answer, {tokens}; " + ", ".join(legend),
        marked(comparison),
        "KL(FP16 || model) in nats, and how often both have the same likeliest token",
        tabulate(_summary(comparison), headers="keys", floatfmt=".3f", missingval=NO_VALUE),
        "Where they are furthest apart",
        tabulate(_worst(comparison), headers="keys", floatfmt=".3f"),
    ]
    if found.instructions:
        parts += ["Instructions", tabulate(_instructions(found), headers="keys", maxcolwidths=60)]
    return clean_text("\n\n".join(parts))


def marked(comparison: Comparison) -> str:
    """The answer, with a mark behind each piece in which a token flipped."""
    words: list[str] = []
    for piece in comparison.pieces:
        flips = [
            MARKS[name]
            for name, seen in comparison.others.items()
            if any(seen.flipped[piece.start : piece.end])
        ]
        body = piece.text.rstrip()
        words.append(body + "".join(flips) + piece.text[len(body) :])
    return "".join(words)


def _summary(comparison: Comparison) -> list[dict[str, Any]]:
    rows = []
    for name, seen in comparison.seen.items():
        figures: dict[str, Any] = {"model": name}
        if name != REFERENCE:
            figures |= {"mean KL": seen.mean_kl, "KL p95": seen.kl_p95}
            figures |= {"top-1": percent(seen.same_top1), "first flip": seen.flip_words}
        if seen.mean_differs is not None:
            figures["draws that differ from FP16's"] = percent(seen.mean_differs)
        rows.append(figures)
    return rows if rows[0].keys() > {"model"} else rows[1:]


def _worst(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "token": at + 1,
            "text": repr(comparison.texts[comparison.ids[at]]),
            "KL": seen.kl[at],
            "FP16's likeliest": _likeliest(comparison, REFERENCE, at),
            "the model's likeliest": _likeliest(comparison, name, at),
        }
        for name, seen in comparison.others.items()
        for at in seen.worst(WORST)
    ]


def _likeliest(comparison: Comparison, name: str, at: int) -> str:
    """The two likeliest tokens of a model."""
    best = comparison.seen[name].likeliest[at][:2]
    return ", ".join(f"{comparison.texts[token]!r} {share:.2f}" for token, share in best)


def _instructions(found: Compared) -> list[dict[str, str]]:
    marks = {True: "yes", False: "no", None: "not judged"}
    return [
        {"instruction": one.words}
        | {name: f"{marks[it.followed]}, {it.reason}" for name, it in judged.items()}
        for one, judged in zip(found.instructions, found.judged, strict=True)
    ]
