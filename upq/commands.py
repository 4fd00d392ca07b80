"""What the commands of the command line do; each returns plain data and reports lines through `say`."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from upq import assembly, checks, data, models, pipeline
from upq.config import RunConfig, with_settings
from upq.context import RunContext
from upq.errors import UserError
from upq.estimate import inspect
from upq.evaluate import Reference
from upq.forward import head, last_hidden
from upq.generate import Decoding, stream
from upq.jobs import open_store
from upq.losses import CHUNK_ROWS
from upq.presets import preset
from upq.serve import Models
from upq.store import Run, Store
from upq.supervisor import Supervisor

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


def run_and_wait(folder: Path, start: Callable[[Store], int], say: Say) -> Run:
    """Queue something with start(store), keep a worker on it, report its progress; returns the ended run.

    Ctrl-C leaves the run interrupted and resumable.
    """
    store = open_store(folder)
    run_id = start(store)
    supervisor = Supervisor(store, folder)
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
        "seconds": (run.ended_at or time.time()) - run.started_at if run.started_at else 0.0,
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
    chosen = {"suite": "builtin", "path": None, "limit": limit, "max_tokens": tokens, "seed": 0}
    chosen["precisions"] = ["FP16", "INT4", "INT2"]
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
    """Run a suite on the models of a run: (the check run, a row of totals per precision)."""
    parent = open_store(folder).run(run_id)
    whole = config | {"run_id": run_id, "model": parent.model}
    run = run_and_wait(folder, lambda store: store.enqueue_check(whole, run_id), say)
    results = open_store(folder).check_results(run.id)
    rows = []
    for precision in config["precisions"]:
        own = [
            checks.PromptResult.from_json(one["result"])
            for one in results
            if one["precision"] == precision
        ]
        rows.append({"precision": precision, **asdict(checks.totals(own))})
    return run, rows


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


def evaluate(store: Store, run_id: int, text: Path | None, tokens: int) -> list[dict[str, Any]]:
    """Fidelity of a run's stored artifacts on its held-out answers, and perplexity of a text file if given."""
    run = store.run(run_id)
    config = RunConfig.from_json(json.dumps(run.config))
    device = pipeline.prepare(config)
    loaded = models.load(config.model.source, revision=config.model.revision)
    teacher = pipeline.in_compute_dtype(loaded.model, device)
    quiet = cast(RunContext, _Quiet(store))
    held_out = data.held_out(config, replace(loaded, model=teacher), quiet)
    reference = Reference(teacher, held_out, lambda: None)
    rows = [reference.measure(teacher, lambda: None).row("FP16", "FP16", bits_per_weight=16.0)]
    subjects = [teacher]
    for kept in store.artifacts(run_id):
        subject, _ = assembly.assemble(
            store.load_artifact(run_id, kept.precision), str(device), teacher.dtype
        )
        extra = {"bits_per_weight": kept.bits_per_weight, "size_bytes": kept.size_bytes}
        rows.append(
            reference.measure(subject, lambda: None).row(kept.precision, kept.precision, **extra)
        )
        subjects.append(subject)
    if text is not None:
        ids = _text_ids(loaded.tokenizer, text, tokens)
        for row, subject in zip(rows, subjects, strict=True):
            row["text_ppl"] = perplexity(subject, ids)
    return rows


def _text_ids(tokenizer: Any, path: Path, tokens: int) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError("not_readable", f"{path} could not be read: {error.strerror}.") from error
    ids = tokenizer(text[: tokens * 20])["input_ids"][:tokens]
    if len(ids) < 2:
        raise UserError(
            "bad_dataset", f"{path} has no text to measure; expected at least two tokens."
        )
    return ids


@torch.no_grad()
def perplexity(model: Any, ids: list[int], window: int = 1024) -> float:
    """Perplexity of a token list in windows that do not overlap; every window's first token is not counted."""
    total, counted = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        piece = torch.tensor([ids[start : start + window]], device=model.device)
        hidden = last_hidden(model, piece)[0, :-1]
        for row in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(row, row + CHUNK_ROWS)
            logits = head(model)(hidden[rows]).float()
            total += F.cross_entropy(logits, piece[0, 1:][rows], reduction="sum").item()
        counted += piece.shape[1] - 1
    return math.exp(total / counted)


class _Quiet:
    """A RunContext for reading data outside a run: answers come from the store, nothing is reported."""

    def __init__(self, store: Store) -> None:
        self.cached_answers, self.save_answers = store.cached_answers, store.save_answers

    def check(self) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def progress(
        self, step: int, *, tokens_per_s: float | None = None, detail: str = ""
    ) -> None: ...
    def log(self, message: str) -> None: ...
