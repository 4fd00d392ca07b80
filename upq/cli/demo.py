"""The main job without a browser: a run, three prompts to each model, and some checks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from upq.config import PRECISIONS, CheckConfig, preset, with_settings
from upq.decode import Decoding
from upq.errors import UserError
from upq.jobs import Models, Show, check, run_and_wait, summary
from upq.quantize.ready import ready
from upq.store import Run, open_store

DEMO_PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Give me three tips for sleeping better.",
    "Write one sentence about the sea, all in lowercase letters.",
)


#: Checks that the demo runs per model, and the longest answer to each, tokens.
DEMO_CHECKS = {"smoke": (4, 48), "quick": (24, 128)}


def demo(folder: Path, source: str, name: str, show: Show) -> dict[str, Any]:
    """Run a preset, ask the demo prompts, run some checks; the object of `demo --json` (docs/cli.md)."""
    started = time.monotonic()
    config = ready(with_settings(preset(name), {"model.source": source}))
    run = run_and_wait(folder, lambda store: store.enqueue(config, name="demo"), show)
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
    chosen = CheckConfig(
        suite="builtin",
        precisions=PRECISIONS,
        run_id=run.id,
        model=run.model,
        limit=limit,
        max_tokens=tokens,
    )
    _, rows = check(folder, chosen, show)
    result = summary(store, run.id) | {"chat": conversations, "checks": rows}
    return result | {"seconds": time.monotonic() - started, "run_seconds": result["seconds"]}


def _ask_all(served: Models, run: Run, prompt: str) -> dict[str, str]:
    answers = {"prompt": prompt}
    for precision in PRECISIONS:
        one = served.get(run.id, precision, run.model)
        messages = [{"role": "user", "content": prompt}]
        for piece in one.answer(messages, Decoding(max_new_tokens=64)):
            answers[precision] = piece.text
    return answers
