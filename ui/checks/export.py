"""What a check found as files: one row for each model and item, as CSV text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

from ui.checks.choices import Results
from upq.evaluation import LETTERS, Marked, PromptResult, Question, scores
from upq.files import csv_text


def csv_of(results: Results, asked: Mapping[Hashable, str | Question]) -> str:
    """Return a line for each outcome: what was asked and answered, whether it was passed, and how the answer ended."""
    rows = [_row(name, outcome, asked) for name, own in results.items() for outcome in own]
    head = list(dict.fromkeys(column for row in rows for column in row))
    return csv_text(head, ([row.get(column) for column in head] for row in rows))


def json_of(suite: str, config: Mapping[str, Any], results: Results) -> str:
    """Return how the check was set up, its scores as the command line gives them, and every outcome."""
    outcomes = {name: [one.to_json() for one in own] for name, own in results.items()}
    values = {"config": config, "scores": scores.rows(suite, results), "outcomes": outcomes}
    return json.dumps(values, indent=1)


def _row(name: str, outcome: Any, asked: Mapping[Hashable, str | Question]) -> dict[str, object]:
    if isinstance(outcome, Marked):
        return {"precision": name, **_marked(outcome, asked.get(scores.item(outcome)[0]))}
    if isinstance(outcome, PromptResult):
        return {"precision": name, **_answered(outcome, asked.get(outcome.key))}
    return {"precision": name, "nll": outcome.nll, "tokens": outcome.tokens}


def _marked(marked: Marked, question: str | Question | None) -> dict[str, object]:
    return {
        "subject": marked.subject,
        "key": marked.key,
        "question": question.question if isinstance(question, Question) else None,
        "right": LETTERS[marked.answer],
        "taken": LETTERS[marked.choice],
        "passed": marked.correct,
    }


def _answered(result: PromptResult, prompt: str | Question | None) -> dict[str, object]:
    ending = result.ending
    return {
        "key": result.key,
        "prompt": prompt if isinstance(prompt, str) else None,
        "answer": result.response,
        "strict": result.strict,
        "loose": result.loose,
        "finish": ending.finish if ending else None,
        "tokens": ending.tokens if ending else None,
        "repeats": ending.repeats if ending else None,
        "reasons": "; ".join(f"{one.instruction_id}: {one.reason}" for one in result.verdicts),
    }
