"""Rows as CSV text in which a spreadsheet finds no formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return head and rows as CSV. Text that begins like a formula gets an apostrophe before it; None is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(_row(row) for row in rows)
    return stream.getvalue()


def _row(values: Sequence[object]) -> list[object]:
    return [f"'{value}" if _starts_formula(value) else value for value in values]


def _starts_formula(value: object) -> bool:
    return isinstance(value, str) and value != "" and value[0] in "=+-@\t\r"
