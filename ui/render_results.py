"""The results: one row an artifact or baseline, as a table, a scatter and CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from ui.charts import Dot, scatter
from ui.html import Html, join, tag
from ui.render import notice, table
from ui.words import METHOD_NAMES, duration, fixed, number, percent, size


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One artifact or baseline of one run; None is "not measured"."""

    run: int
    model: str
    method: str
    preset: str
    label: str  # "INT4", "RTN INT2", ...
    precision: str
    size_bytes: int | None
    bits_per_weight: float | None
    kl: float | None
    kl_p95: float | None
    top1: float | None
    ppl: float | None
    prompt_strict: float | None
    prompts_checked: int | None
    tokens_per_s: float | None
    run_seconds: float | None
    tokens: int | None
    seed: int

    @property
    def baseline(self) -> bool:
        """Whether this is a measurement without an artifact."""
        return self.label != self.precision


COLUMNS = ("run", "artifact", "method", "b/w", "size", "KL", "KL p95", "top-1", "ppl", "checks")
COLUMNS += ("tok/s", "time", "seed")


def results_table(rows: Sequence[ResultRow]) -> Html:
    """Every artifact and baseline side by side."""
    if not rows:
        return notice(
            "empty", "No results yet.", "They appear here when a run has packed its first artifact."
        )
    return table(COLUMNS, [_cells(row) for row in rows], numeric=range(3, 13), class_="results")


def _cells(row: ResultRow) -> list[object]:
    kind = f"{row.precision.lower()}{' baseline' if row.baseline else ''}"
    checks = (
        join([percent(row.prompt_strict, 0), tag("small", f" of {row.prompts_checked}")])
        if row.prompts_checked
        else percent(None)
    )
    return [
        join([tag("b", f"#{row.run}"), tag("small", f" {row.model}")]),
        tag("span", row.label, class_=kind),
        f"{METHOD_NAMES.get(row.method, row.method)} {row.preset}",
        fixed(row.bits_per_weight, 2),
        size(row.size_bytes),
        fixed(row.kl, 3),
        fixed(row.kl_p95, 3),
        percent(row.top1),
        number(row.ppl),
        checks,
        number(row.tokens_per_s),
        duration(row.run_seconds),
        row.seed,
    ]


def size_against_quality(rows: Sequence[ResultRow]) -> Html:
    """Size on disk against mean KL to FP16: lower left is better."""
    dots = [
        Dot(
            row.size_bytes,
            row.kl,
            row.precision.lower(),
            f"#{row.run} {row.label}",
            f"run #{row.run} {row.label}: {size(row.size_bytes)}, KL {fixed(row.kl, 3)}",
            hollow=row.baseline,
        )
        for row in rows
        if row.size_bytes is not None and row.kl  # FP16 is 0, which a log axis has no place for
    ]
    return scatter(
        "Mean KL to FP16 (nats) against size",
        dots,
        x_name="size",
        x_text=size,
        empty="A point for each artifact that was measured.",
    )


def csv_text(rows: Sequence[ResultRow]) -> str:
    """The rows as CSV, sizes in bytes and times in seconds."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(ResultRow)])
    writer.writerows([[_csv_cell(value) for value in astuple(row)] for row in rows])
    return stream.getvalue()


def _csv_cell(value: object) -> object:
    """A spreadsheet must not take text for a formula."""
    starts_formula = isinstance(value, str) and value[:1] in "=+-@\t\r" and value != ""
    return f"'{value}" if starts_formula else value
