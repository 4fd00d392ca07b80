"""The results: one row an artifact or baseline, as a table, as size against quality, and as CSV text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from ui.html import (
    METHOD_NAMES,
    NO_VALUE,
    Dot,
    Html,
    csv_text,
    duration,
    fixed,
    join,
    notice,
    number,
    peak_memory,
    percent,
    scatter,
    size,
    table,
    tag,
)
from ui.results.comparison import ResultRow, Score


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


def _artifact(row: ResultRow) -> Html:
    kind = f"{row.precision.lower()}{' baseline' if row.baseline else ''}"
    return tag("span", row.label, class_=kind)


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
    return tag("span", f"{row.agreed_median:.0f} tokens", title=hint)


def _method(row: ResultRow) -> str:
    return f"{METHOD_NAMES.get(row.method, row.method)} {row.preset}"


def _run(row: ResultRow) -> Html:
    return join([tag("b", f"#{row.run}"), tag("small", f" {row.model}")])


COLUMNS = (
    Column("run", _run, lambda row: row.run, numeric=False),
    Column("artifact", _artifact, lambda row: row.label, numeric=False),
    Column("method", _method, _method, numeric=False),
    Column("b/w", lambda row: fixed(row.bits_per_weight, 2), lambda row: row.bits_per_weight),
    Column("size", lambda row: size(row.size_bytes), lambda row: row.size_bytes),
    Column("KL", _kl, lambda row: row.kl),
    Column("KL as served", _served, lambda row: row.served_kl),
    Column("KL p95", lambda row: fixed(row.kl_p95, 3), lambda row: row.kl_p95),
    Column("top-1", lambda row: percent(row.top1), lambda row: row.top1),
    Column("agrees for", _agreed, lambda row: row.agreed_median),
    Column("ppl", lambda row: number(row.ppl), lambda row: row.ppl),
    *(_suite_column(suite) for suite in SUITES),
    Column("tok/s", lambda row: number(row.tokens_per_s), lambda row: row.tokens_per_s),
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
    Column("seed", lambda row: row.seed, lambda row: row.seed, origin=True),
    Column("commit", lambda row: row.commit or NO_VALUE, lambda row: row.commit, False, True),
    Column("machine", lambda row: row.machine or NO_VALUE, lambda row: row.machine, False, True),
)


def results_table(rows: Sequence[ResultRow], *, brief: bool = False) -> Html:
    """Draw every artifact and baseline side by side; a click on a column's head sorts by it.

    brief is for paper: without the columns that are empty or about where the rows come from, and without sorting.
    """
    if not rows:
        return notice(
            "empty", "No results yet.", "They appear here when a run has packed its first artifact."
        )
    chosen = [
        column
        for column in COLUMNS
        if not brief or (not column.origin and any(column.key(row) is not None for row in rows))
    ]
    drawn = table(
        [column.name for column in chosen],
        [[column.cell(row) for column in chosen] for row in rows],
        numeric=[place for place, column in enumerate(chosen) if column.numeric],
        class_="results",
        keys=() if brief else [[column.key(row) for column in chosen] for row in rows],
    )
    return join([drawn, _serving_note(rows)])


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
    """Draw size on disk against one of MEASURES, FP16 once for each model."""
    chosen = MEASURES[measure]
    models = {row.model for row in rows}
    dots: dict[str, Dot] = {}
    for row in rows:
        value = chosen.value(row)
        if row.size_bytes is None or value is None:
            continue
        name = f"#{row.run} {row.label}"
        if row.label == "FP16":
            name = "FP16" if len(models) == 1 else f"FP16 {row.model}"
        hint = f"{name}: {size(row.size_bytes)}, {chosen.title} {chosen.text(value)}"
        kind = row.precision.lower()
        dots[name] = Dot(row.size_bytes, value, kind, name, hint, hollow=row.baseline)
    return scatter(
        f"{chosen.title} against size",
        list(dots.values()),
        x_name="size",
        x_text=size,
        y_text=chosen.text,
        higher_is_better=chosen.higher_is_better,
        empty=chosen.missing,
    )


def rows_as_csv(rows: Sequence[ResultRow]) -> str:
    """Return the rows as CSV, sizes in bytes, times in seconds, shares from 0 to 1."""
    plain = [field.name for field in fields(ResultRow) if field.name != "scores"]
    parts = [field.name for field in fields(Score)]
    head = [*plain, *(f"{suite}_{part}" for suite in SUITES for part in parts)]
    return csv_text(head, (_values(row, plain, parts) for row in rows))


def _values(row: ResultRow, plain: Sequence[str], parts: Sequence[str]) -> list[object]:
    scores = [getattr(row.scores.get(suite), part, None) for suite in SUITES for part in parts]
    return [*(getattr(row, name) for name in plain), *scores]
