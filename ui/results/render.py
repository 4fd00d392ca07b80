"""The results: one row for an artifact or baseline, as a table, as size against quality, and as CSV text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from ui.html import (
    METHOD_NAMES,
    NO_VALUE,
    PRECISIONS,
    Dot,
    Html,
    Key,
    duration,
    fixed,
    join,
    notice,
    number,
    peak_memory,
    percent,
    plural,
    scatter,
    size,
    table,
    tag,
)
from ui.results.comparison import ResultRow, Score
from upq.files import csv_text


@dataclass(frozen=True)
class Measure:
    """Something to set against size.

    value returns the measure of a row, None where it was not measured; missing tells how to get it then.
    """

    title: str
    value: Callable[[ResultRow], float | None]
    text: Callable[[float], str]
    higher_is_better: bool
    missing: str


def _score(suite: str) -> Callable[[ResultRow], float | None]:
    return lambda row: row.scores[suite].value if suite in row.scores else None


_CHECK = "Not measured for these runs. Run the suite on the Checks tab."
_RUN = "A point for each artifact that was measured."
MEASURES: Mapping[str, Measure] = {
    "kl": Measure("Mean KL to FP16 (nats)", lambda row: row.kl, number, False, _RUN),
    "top1": Measure("Top-1 agreement with FP16", lambda row: row.top1, percent, True, _RUN),
    "ppl": Measure("Perplexity of FP16's answers", lambda row: row.ppl, number, False, _RUN),
    "wikitext2": Measure("WikiText-2 perplexity", _score("wikitext2"), number, False, _CHECK),
    "mmlu": Measure("MMLU accuracy", _score("mmlu"), percent, True, _CHECK),
    "ifeval": Measure("IFEval prompts followed", _score("ifeval"), percent, True, _CHECK),
    "builtin": Measure("Built-in checks followed", _score("builtin"), percent, True, _CHECK),
}
#: A row of several runs names so many of them.
NAMED_RUNS = 3
#: Precision -> its shape in a scatter.
SHAPES = {"FP16": "square", "INT4": "round", "INT2": "diamond"}
#: Suite -> its column in the table.
SUITES = {"wikitext2": "WikiText-2", "mmlu": "MMLU", "ifeval": "IFEval", "builtin": "checks"}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    key returns what a row is sorted by, None where there is no value. origin marks a column about where a row comes
    from, which a report tells elsewhere.
    """

    name: str
    cell: Callable[[ResultRow], object]
    key: Callable[[ResultRow], object]
    numeric: bool = True
    origin: bool = False


def _suite_column(suite: str) -> Column:
    return Column(
        SUITES[suite], lambda row: score_cell(suite, row.scores.get(suite)), MEASURES[suite].value
    )


def row_name(row: ResultRow) -> str:
    """Name a row in short: "#4 INT2" of a run, "FP16" and "RTN INT2" of several runs, with these if others differ."""
    if row.run is not None:
        return f"#{row.run} {row.label}"
    return f"{row.label} ({_runs(row)})" if row.is_apart else row.label


def _runs(row: ResultRow) -> str:
    return ", ".join(f"#{run}" for run in row.runs[:NAMED_RUNS]) + (
        f" and {len(row.runs) - NAMED_RUNS} more" if len(row.runs) > NAMED_RUNS else ""
    )


def _model(row: ResultRow) -> Html:
    """Draw what a row is of, and below it whose it is."""
    sign = tag("i", class_=f"key shape {SHAPES[row.precision]} {_colour(row)}")
    kind = f"{row.precision.lower()}{' baseline' if row.baseline else ''}"
    if row.run is not None:
        own = " ".join(filter(None, [METHOD_NAMES.get(row.method, row.method), row.run_name]))
        name = join([tag("b", f"#{row.run} "), tag("span", row.label, class_=kind)])
    else:
        whose = f"{row.model}, " if row.label == "FP16" else ""
        own = f"{whose}beside {_runs(row)}"
        name = tag("span", row.label, class_=kind)
    return join([sign, name, tag("small", own)])


def _colour(row: ResultRow) -> str:
    return f"{row.slot}{' hollow' if row.baseline else ''}"


def _kl(row: ResultRow) -> Html:
    text = fixed(row.kl, 3)
    return with_interval(text, row.kl_low, row.kl_high, lambda value: fixed(value, 3))


def _served(row: ResultRow) -> Html | str:
    if row.served_by is None:
        return NO_VALUE
    hint = f"{row.served_by}: top-1 {percent(row.served_top1)}, perplexity {number(row.served_ppl)}"
    return tag("span", fixed(row.served_kl, 3), title=hint)


def _agreed(row: ResultRow) -> Html | str:
    if row.agreed_median is None:
        return NO_VALUE
    hint = "median over held-out answers: tokens before the first one that differs from FP16's"
    return tag("span", plural(round(row.agreed_median), "token"), title=hint)


def _method(row: ResultRow) -> str:
    return f"{METHOD_NAMES.get(row.method, row.method)} {row.preset}".strip()


#: What tells the rows of several models apart; of one model it would say the same everywhere.
SOURCE = Column("of", lambda row: row.model, lambda row: row.model, numeric=False)
#: The first column stays in view; those that matter most stand beside it.
COLUMNS = (
    Column("model", _model, row_name, numeric=False),
    Column("KL", _kl, lambda row: row.kl),
    Column("top-1", lambda row: percent(row.top1), lambda row: row.top1),
    Column("size", lambda row: size(row.size_bytes), lambda row: row.size_bytes),
    Column("b/w", lambda row: fixed(row.bits_per_weight, 2), lambda row: row.bits_per_weight),
    *(_suite_column(suite) for suite in ("builtin", "ifeval", "mmlu", "wikitext2")),
    Column("tok/s", lambda row: number(row.tokens_per_s), lambda row: row.tokens_per_s),
    Column("KL as served", _served, lambda row: row.served_kl),
    Column("KL p95", lambda row: fixed(row.kl_p95, 3), lambda row: row.kl_p95),
    Column("agrees for", _agreed, lambda row: row.agreed_median),
    Column("ppl", lambda row: number(row.ppl), lambda row: row.ppl),
    SOURCE,
    Column("method", lambda row: _method(row) or NO_VALUE, _method, numeric=False),
    Column(
        "trained on",
        lambda row: f"{row.training_tokens:,}" if row.training_tokens else NO_VALUE,
        lambda row: row.training_tokens,
    ),
    Column("time", lambda row: duration(row.run_seconds), lambda row: row.run_seconds),
    Column(
        "peak memory",
        lambda row: peak_memory(row.peak_bytes, row.gpu_peak_bytes),
        lambda row: row.gpu_peak_bytes or row.peak_bytes,
    ),
    Column(
        "seed",
        lambda row: NO_VALUE if row.seed is None else row.seed,
        lambda row: row.seed,
        origin=True,
    ),
    Column("commit", lambda row: row.commit or NO_VALUE, lambda row: row.commit, False, True),
    Column("machine", lambda row: row.machine or NO_VALUE, lambda row: row.machine, False, True),
)


def results_table(rows: Sequence[ResultRow], *, brief: bool = False) -> Html:
    """Draw every artifact and baseline side by side; a click on a column's head sorts by it.

    A column without any value is left out. brief is for paper: without the columns about where the rows come from,
    and without sorting.
    """
    if not rows:
        return notice(
            "empty", "No results yet.", "They appear here when a run has packed its first artifact."
        )
    single = len({row.model for row in rows}) == 1
    chosen = [
        column
        for column in COLUMNS
        if not (single and column is SOURCE)
        and not (brief and column.origin)
        and any(column.key(row) not in (None, "") for row in rows)
    ]
    drawn = table(
        [column.name for column in chosen],
        [[column.cell(row) for column in chosen] for row in rows],
        numeric=[place for place, column in enumerate(chosen) if column.numeric],
        class_="results",
        keys=() if brief else [[column.key(row) for column in chosen] for row in rows],
    )
    return join([drawn, _apart_note(rows), _serving_note(rows)])


def filtered_table(rows: Sequence[ResultRow], listed: Sequence[ResultRow]) -> Html:
    """Draw the table of the rows that a filter left of all of them."""
    if rows and not listed:
        return notice("empty", "No row is left.", "Take a check out of the filters above.")
    return results_table(listed)


def _apart_note(rows: Sequence[ResultRow]) -> Html | None:
    """Say why a yardstick stands in several rows, where one does."""
    if not any(row.is_apart for row in rows):
        return None
    words = "These runs were measured on different held-out answers, which are not equally hard to agree on:"
    return tag("p", f"{words} compare each with the RTN that names it.", class_="hint")


def _serving_note(rows: Sequence[ResultRow]) -> Html | None:
    """Say what "as served" means, where a row has such figures."""
    engines = sorted({row.served_by for row in rows if row.served_by})
    if not engines:
        return None
    words = "As served: what the engine that answers in the chat gives on the same tokens"
    return tag("p", f"{words} ({'; '.join(engines)}).", class_="hint")


def score_cell(suite: str, score: Score | None) -> Html:
    """Draw a suite's figure with its interval and the number of trials; a dash where it was not measured."""
    if score is None:
        return Html(NO_VALUE)
    measure = MEASURES[suite]
    cell = with_interval(measure.text(score.value), score.low, score.high, measure.text)
    return join([cell, tag("small", f" of {score.count:,}")])


def with_interval(
    text: str, low: float | None, high: float | None, write: Callable[[float], str]
) -> Html:
    """Draw a figure and, where it is known and not a point, its 95 % interval."""
    if low is None or high is None or low == high:
        return join([text])
    ends = f" {write(low).removesuffix(' %')}\u2013{write(high)}"
    return join([text, tag("small", ends, title="95 % interval")])


def size_against_quality(rows: Sequence[ResultRow], measure: str) -> Html:
    """Draw size on disk against one of MEASURES: a run by its colour, a precision by its shape, baselines hollow."""
    chosen = MEASURES[measure]
    models = {row.model for row in rows}
    measured = [row for row in rows if row.size_bytes is not None and chosen.value(row) is not None]
    dots = [
        Dot(
            row.size_bytes or 0,
            chosen.value(row) or 0.0,
            row.slot,
            row_name(row) if len(models) == 1 or row.run else f"{row_name(row)} {row.model}",
            SHAPES[row.precision],
            hollow=row.baseline,
        )
        for row in measured
    ]
    return scatter(
        chosen.title,
        dots,
        x_name="size",
        x_text=size,
        y_text=chosen.text,
        higher_is_better=chosen.higher_is_better,
        legend=_legend(measured),
        empty=chosen.missing,
    )


def _legend(rows: Sequence[ResultRow]) -> list[Key]:
    """Return the shapes of the precisions, the colours of the runs, and what is hollow."""
    shapes = {row.precision: f"shape {SHAPES[row.precision]} plain" for row in rows}
    runs = {
        f"#{row.run} {METHOD_NAMES.get(row.method, row.method)}": row.slot
        for row in rows
        if row.run is not None
    }
    found = [(name, shapes[name], "") for name in PRECISIONS if name in shapes]
    if any(row.baseline for row in rows):
        found.append(("baseline", "shape hollow plain", ""))
    return [*found, *((name, slot, "") for name, slot in runs.items())]


def rows_as_csv(rows: Sequence[ResultRow]) -> str:
    """Return the rows as CSV, sizes in bytes, times in seconds, shares from 0 to 1."""
    plain = [field.name for field in fields(ResultRow) if field.name not in ("scores", "slot")]
    parts = [field.name for field in fields(Score)]
    head = [*plain, *(f"{suite}_{part}" for suite in SUITES for part in parts)]
    return csv_text(head, (_values(row, plain, parts) for row in rows))


def _values(row: ResultRow, plain: Sequence[str], parts: Sequence[str]) -> list[object]:
    scores = [getattr(row.scores.get(suite), part, None) for suite in SUITES for part in parts]
    values = vars(row) | {"runs": " ".join(map(str, row.runs))}
    return [*(values[name] for name in plain), *scores]
