"""What the commands of the command line do; each returns plain data and reports lines through `say`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from upq.config.presets import preset
from upq.config.schema import RunConfig, with_settings
from upq.decode.generate import Decoding, stream
from upq.errors import UserError
from upq.evaluation import scores
from upq.evaluation.suites import check_config
from upq.jobs import distributed
from upq.jobs.served import Models
from upq.jobs.supervisor import Supervisor
from upq.models.shape import inspect
from upq.store.database import Store
from upq.store.folder import open_store
from upq.store.run import Run

ENDED = ("done", "failed", "cancelled")
DEMO_PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Give me three tips for sleeping better.",
    "Write one sentence about the sea, all in lowercase letters.",
)
#: Checks that the demo runs per model, and the longest answer to each, tokens.
DEMO_CHECKS = {"smoke": (4, 48), "quick": (24, 128)}
Say = Callable[[str], None]


def vet(config: RunConfig) -> None:
    """Raise the UserError of a model that cannot be quantized before a run is queued; reads its config only."""
    groups = config.int4.group_size, config.int2.group_size
    inspect(config.model.source, config.model.revision, *groups)


def run_and_wait(folder: Path, start: Callable[[Store], int], say: Say, processes: int = 1) -> Run:
    """Queue something with start(store), keep a worker on it, report its progress; returns the ended run.

    processes: how many train together where a stage allows it. Ctrl-C leaves the run interrupted and resumable.
    """
    store = open_store(folder)
    run_id = start(store)
    command = distributed.command(folder, processes) if processes > 1 else None
    supervisor = Supervisor(store, folder, command=command)
    supervisor.start()
    try:
        return _follow(store, run_id, say)
    finally:
        supervisor.stop()


def _follow(store: Store, run_id: int, say: Say) -> Run:
    shown, lines = "", 0
    while True:
        run = store.run(run_id)
        log = store.log_lines(run_id, limit=1000)
        for _, line in log[lines:]:
            say(f"  {line}")
        lines = len(log)
        at = (
            f"{run.stage} {run.stage_step}/{run.stage_total}"
            if run.state == "running"
            else run.state
        )
        if at != shown and (run.stage_step % 10 == 0 or run.state != "running"):
            say(f"run {run_id}: {at} {run.detail}")
            shown = at
        if run.state in ENDED:
            if run.error_message:
                say(f"{run.error_message} {run.error_hint}".strip())
            return run
        time.sleep(0.5)


def summary(store: Store, run_id: int) -> dict[str, Any]:
    """The measurements of a run as `--json` gives them: model, artifacts, baselines."""
    run = store.run(run_id)
    rows = store.measurements(run_id)
    kept = store.artifacts(run_id)
    base = kept[0].manifest["base_model"] if kept else {"name": run.model, "reference_note": ""}
    return {
        "model": base["name"],
        "reference_note": base["reference_note"],
        "seconds": run.worked_s,
        "artifacts": [row for row in rows if not row["label"].startswith("RTN")],
        "baselines": [row for row in rows if row["label"].startswith("RTN")],
    }


def demo(folder: Path, source: str, name: str, say: Say) -> dict[str, Any]:
    """Run a preset, ask the demo prompts, run some checks; the object of `demo --json` (docs/architecture.md)."""
    started = time.monotonic()
    config = with_settings(preset(name), {"model.source": source})
    vet(config)
    run = run_and_wait(folder, lambda store: store.enqueue(config, name="demo"), say)
    if run.state != "done":
        raise UserError(
            run.error_code or run.state,
            run.error_message or f"Run {run.id} is {run.state}.",
            run.error_hint,
        )
    store = open_store(folder)
    served = Models(store)
    conversations = [_ask_all(served, run, prompt) for prompt in DEMO_PROMPTS]
    limit, tokens = DEMO_CHECKS[name]
    precisions = ["FP16", "INT4", "INT2"]
    options = {"limit": limit, "max_tokens": tokens}
    chosen = check_config("builtin", precisions, run.id, run.model, **options)
    _, rows = check(folder, run.id, chosen, say)
    result = summary(store, run.id) | {"chat": conversations, "checks": rows}
    return result | {"seconds": time.monotonic() - started, "run_seconds": result["seconds"]}


def _ask_all(served: Models, run: Run, prompt: str) -> dict[str, str]:
    answers = {"prompt": prompt}
    for precision in ("FP16", "INT4", "INT2"):
        one = served.get(run.id, precision, run.model)
        messages = [{"role": "user", "content": prompt}]
        for piece in stream(
            one.engine, one.tokenizer, messages, Decoding(max_new_tokens=64), lambda: False
        ):
            answers[precision] = piece.text
    return answers


def check(
    folder: Path, run_id: int, config: dict[str, Any], say: Say
) -> tuple[Run, list[dict[str, Any]]]:
    """Run a suite on the models of a run: (the check run, a row of scores per precision, check_report.rows).

    config: as check_run.check_config makes it. A check run of the same config that did not come to its end is
    continued instead of a new one.
    """
    unfinished = [
        run.id
        for run in open_store(folder).runs(kind="check")
        if run.parent_id == run_id and run.config == config and run.state != "done"
    ]

    def start(store: Store) -> int:
        if not unfinished:
            return store.enqueue_check(config, run_id)
        if store.run(unfinished[0]).state in ("failed", "cancelled", "interrupted"):
            store.resume(unfinished[0])
        return unfinished[0]

    run = run_and_wait(folder, start, say)
    stored = open_store(folder).check_results(run.id)
    found = scores.outcomes(config["suite"], stored)
    return run, scores.rows(config["suite"], found)


def chat(store: Store, run_id: int, precisions: list[str]) -> None:
    """A conversation on the terminal: every line goes to each precision, an empty line ends it."""
    run = store.run(run_id)
    served = Models(store)
    histories: dict[str, list[dict[str, str]]] = {one: [] for one in precisions}
    for line in _typed_lines():
        for precision, history in histories.items():
            one = served.get(run_id, precision, run.model)
            history.append({"role": "user", "content": line})
            text = ""
            sys.stdout.write(f"{precision}: ")
            for piece in stream(
                one.engine, one.tokenizer, history, Decoding(), threading.Event().is_set
            ):
                sys.stdout.write(piece.text[len(text) :])
                sys.stdout.flush()
                text = piece.text
            sys.stdout.write(f"  [{piece.tokens_per_s:.1f} tokens/s]\n")
            history.append({"role": "assistant", "content": text})


def _typed_lines() -> Iterator[str]:
    with suppress(EOFError):
        while line := input("\n> ").strip():
            yield line
