"""`python -m upq eval`: what the stored artifacts of a run are worth, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from upq import data
from upq.config import CheckConfig, RunConfig
from upq.context import SilentContext
from upq.errors import UserError
from upq.evaluation import local_copy, read_chunk, wikitext
from upq.files import decoded, file_problem
from upq.jobs import Turns, follow
from upq.quantize import Yardstick, pipeline
from upq.store import open_store

#: Largest text file, 256 MiB.
MOST_TEXT_BYTES = 1 << 28


def suite_rows(
    folder: Path,
    run_id: int,
    suite: str,
    precisions: Sequence[str],
    data_folder: str | None,
    options: dict[str, Any],
    show: follow.Show,
) -> list[dict[str, Any]]:
    """Put one suite to the artifacts of a run as a check run; its rows of scores.

    data_folder: where local copies of the suites are, None: what UPQ_DATA names; what is not there comes from the hub.
    options: further fields of CheckConfig. Raises UserError where the check run does not end as done.
    """
    store = open_store(folder)
    run = store.run(run_id)
    there = {"FP16", *(one.precision for one in store.artifacts(run_id))}
    wanted = [one for one in precisions if one in there]
    config = CheckConfig(
        suite=suite,
        precisions=tuple(wanted),
        run_id=run_id,
        model=run.model,
        path=local_copy(suite, data_folder),
        **options,
    )
    ended, rows = follow.check(folder, config, show)
    if ended.state != "done":
        message = ended.error_message or f"Check run {ended.id} is {ended.state}."
        raise UserError(ended.error_code or ended.state, message, ended.error_hint)
    return rows


def fidelity(folder: Path, run_id: int, text: Path | None, tokens: int) -> list[dict[str, Any]]:
    """Fidelity of a run's stored artifacts on its held-out answers, and perplexity of a text file if given."""
    store = open_store(folder)
    run = store.run(run_id)
    config = RunConfig.from_values(run.config)
    loaded, teacher = pipeline.load_teacher(config)
    silent = SilentContext(folder, store.cached_answers, store.save_answers)
    held_out = data.held_out(config, replace(loaded, model=teacher), silent)
    with Turns() as turns:
        yardstick = Yardstick(teacher, held_out, lambda: turns.wait(lambda: None))
        rows, subjects = [yardstick.fp16_row()], [teacher]
        for kept in store.artifacts(run_id):
            artifact = store.load_artifact(run_id, kept.precision)
            subjects.append(yardstick.assembled(artifact))
            rows.append(yardstick.row(kept.precision, artifact, subjects[-1], answers=True))
    if text is not None:
        ids = _text_ids(loaded.tokenizer, text, tokens)
        for row, subject in zip(rows, subjects, strict=True):
            row["text_ppl"] = perplexity(subject, ids)
    return rows


def _text_ids(tokenizer: Any, path: Path, tokens: int) -> list[int]:
    if problem := file_problem(path, MOST_TEXT_BYTES):
        raise UserError("not_readable", f"{path} {problem}; expected a text file.", "Check --text.")
    try:
        text = decoded(path.read_bytes())
    except ValueError as error:
        raise UserError("not_readable", f"{path}, {error}.", "Save the file as UTF-8.") from error
    except OSError as error:
        raise UserError("not_readable", f"{path} could not be read: {error.strerror}.") from error
    ids = tokenizer(text[: tokens * 20])["input_ids"][:tokens]
    if len(ids) < 2:
        raise UserError(
            "bad_dataset", f"{path} has no text to measure; expected at least two tokens."
        )
    return ids


def perplexity(model: Any, ids: list[int], window: int = 1024) -> float:
    """Perplexity of a token list in windows that do not overlap; every window's first token is not counted."""
    starts = range(0, len(ids) - 1, window)
    return wikitext.perplexity([read_chunk(model, ids[at : at + window]) for at in starts])[0]
