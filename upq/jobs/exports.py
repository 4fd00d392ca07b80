"""A stored run as something to export: its artifact opened, and what is known of it for the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upq.config import CheckConfig
from upq.context import training_tokens
from upq.errors import UserError
from upq.evaluation import scores
from upq.export import FORMATS, PackedModel, Results, file_name, opened
from upq.store import Store

#: Suites as the card calls them.
TITLES = {
    "builtin": "Built-in checks",
    "ifeval": "IFEval",
    "mmlu": "MMLU",
    "wikitext2": "WikiText-2",
}
#: So many of the newest checks are looked through.
MOST_CHECKS = 10_000


def require_artifact(store: Store, run_id: int, precision: str) -> int:
    """The id of a run's artifact. Raises UserError: run_not_found, artifact_not_found."""
    store.run(run_id)
    for row in store.artifacts(run_id):
        if row.precision == precision:
            return row.id
    raise UserError(
        "artifact_not_found",
        f"Run {run_id} has no {precision}.",
        "Choose a run that is done, or wait for this one.",
    )


def model_of(store: Store, run_id: int, precision: str) -> PackedModel:
    """The artifact of a run, opened. Raises UserError: artifact_not_found, artifact_version, artifact_damaged."""
    artifact = store.load_artifact(run_id, precision)
    return opened(artifact, file_name(artifact))


def offers(model: PackedModel) -> list[dict[str, Any]]:
    """A row for each format: key, title, runs_in, then size_bytes, bits_per_weight and exactness, or why_not."""
    rows = []
    for form in FORMATS:
        row = {"key": form.key, "title": form.title, "runs_in": form.runs_in}
        try:
            rows.append(row | vars(form.offer(model)))
        except UserError as error:
            rows.append(row | {"why_not": error.message})
    return rows


def results_of(store: Store, run_id: int, precision: str) -> Results:
    """What a run and its newest finished checks say of one of its models."""
    rows = {row["label"]: row["extra"] | row for row in store.measurements(run_id)}
    return Results(
        measured=rows.get(precision, {}),
        reference=rows.get("FP16", {}),
        scores=_scores(store, run_id, precision),
        tokens=training_tokens(store.metrics(run_id)),
    )


def _scores(store: Store, run_id: int, precision: str) -> Mapping[str, list[dict[str, str]]]:
    """Title of a suite -> rows of FP16, where it took part, and of a precision, as people read them."""
    found: dict[str, list[dict[str, str]]] = {}
    for run in store.runs(limit=MOST_CHECKS, kind="check"):
        if run.parent_id != run_id or run.state != "done":
            continue
        suite = CheckConfig.from_values(run.config).suite
        rows = scores.rows(suite, scores.outcomes(suite, store.check_results(run.id)))
        chosen = [row for row in rows if row["precision"] in ("FP16", precision)]
        if any(row["precision"] == precision for row in chosen):
            found.setdefault(TITLES[suite], [scores.readable(suite, row) for row in chosen])
    return found
