"""The named endpoints for programs: the same functions as the page, typed and documented.

An error is one sentence. No endpoint returns a file, and the only paths taken are those of a model,
a data set and a suite.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from gradio.events import api as register

from ui.app_state import App, as_gradio_error, with_plain_errors
from ui.chat import checked_message, column, conversation_of, decoding_of
from ui.checks import form
from ui.html import PRECISIONS
from upq.config import DEFAULT_METHOD, with_settings
from upq.config import preset as preset_config
from upq.decode import stream
from upq.errors import UserError
from upq.quantize.ready import ready
from upq.store import Run

HIDDEN = frozenset({"worker", "pid", "lease_s", "lease_until"})


def build(app: App) -> None:
    """Register the endpoints. Must be called inside a gradio.Blocks."""
    for endpoint in (*_run_endpoints(app), _chat_endpoint(app), _check_endpoint(app)):
        register(endpoint, api_name=endpoint.__name__)


def _run_endpoints(app: App) -> list[Callable[..., Any]]:
    @with_plain_errors
    def start_run(
        model: str = "bundled",
        method: str = DEFAULT_METHOD,
        preset: str = "quick",
        settings_json: str = "{}",
    ) -> dict:
        """Queue a quantization run.

        Args:
            model: `bundled`, a Hugging Face hub id, a local folder or a GGUF file.
            method: `rotated_upq`, `upq`, `efficientqat`, `unisvq`, `gptq` or `rtn`.
            preset: `smoke`, `quick`, `overnight`, `lease`, `standard` or `paper`.
            settings_json: JSON object of dotted settings, e.g. {"int2.distill.tokens": 4000}.
        """
        changes = {**_json_object(settings_json), "model.source": model}
        config = with_settings(preset_config(preset, method), changes)
        run_id = app.store.enqueue(ready(config, changes))
        return {"run_id": run_id, "queue_position": app.store.queue_position(run_id)}

    @with_plain_errors
    def run_status(run_id: int) -> dict:
        """State, progress, errors, artifacts and measurements of a run."""
        run = app.store.run(run_id)
        artifacts = [
            {
                "precision": row.precision,
                "size_bytes": row.size_bytes,
                "bits_per_weight": row.bits_per_weight,
            }
            for row in app.store.artifacts(run_id)
        ]
        measurements = app.store.measurements(run_id)
        return {**_public(run), "artifacts": artifacts, "measurements": measurements}

    @with_plain_errors
    def cancel_run(run_id: int) -> str:
        """Ask a run to stop; its checkpoint is kept. Returns a sentence."""
        return app.store.request_cancel(run_id)

    @with_plain_errors
    def resume_run(run_id: int) -> str:
        """Queue a failed, cancelled or interrupted run again. Returns a sentence."""
        return app.store.resume(run_id)

    @with_plain_errors
    def list_runs() -> list:
        """The newest 100 runs, newest first."""
        return [_public(run) for run in app.store.runs()]

    return [start_run, run_status, cancel_run, resume_run, list_runs]


def _chat_endpoint(app: App) -> Callable[..., Any]:
    def chat(
        run_id: int,
        precision: str,
        message: str,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[dict]:
        """Stream the answer of one precision of a run (0: the bundled model) to one message.

        Args:
            run_id: the run whose artifacts answer; 0 for the bundled FP16 model.
            precision: FP16, INT4 or INT2.
            message: what the user says.
            system: system prompt; empty for the model's default.
            max_tokens: longest answer, tokens.
            temperature: 0 is greedy.
            top_p: nucleus share, 0.01 to 1.
            seed: seed of the sampling.
        """
        try:
            yield from _chat(
                app, run_id, precision, message, system, (max_tokens, temperature, top_p, seed)
            )
        except UserError as error:
            raise as_gradio_error(error) from error

    return chat


def _chat(
    app: App, run_id: int, precision: str, message: str, system: str, decoding: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise UserError("bad_precision", f"precision is {precision!r}; expected {expected}.")
    if run_id:
        app.store.run(run_id)
    state = column(app, precision, run_id)
    if not state.source:
        found = state.training or f"Run {run_id} has no {precision}."
        raise UserError("artifact_not_found", found, "Start a run, or wait until it is packed.")
    served = app.models.get(state.run_id, precision, state.source)
    conversation = conversation_of(system, [{"role": "user", "content": checked_message(message)}])
    decoding_settings = decoding_of(*decoding)
    for piece in stream(
        served.engine, served.tokenizer, conversation, decoding_settings, lambda: False
    ):
        yield dataclasses.asdict(piece)


def _check_endpoint(app: App) -> Callable[..., Any]:
    @with_plain_errors
    def run_checks(
        run_id: int,
        suite: str = "builtin",
        path: str = "",
        amount: int = 60,
        max_tokens: int = 256,
        precisions: list = list(PRECISIONS),  # noqa: B006 - Gradio reads the default, nobody changes it
        seed: int = 0,
    ) -> dict:
        """Queue a check run; `run_status` tells when it is done.

        Args:
            run_id: the run to check; 0 for the bundled FP16 model.
            suite: `builtin`, `ifeval`, `mmlu` or `wikitext2`.
            path: a local file of the suite; empty: the folder that UPQ_DATA names, else the hub.
            amount: prompts at most; of `mmlu` questions per subject, of `wikitext2` chunks.
            max_tokens: longest answer, tokens.
            precisions: which of FP16, INT4, INT2; missing ones are left out.
            seed: seed of the verdicts that draw at random.
        """
        check_id = form.enqueue(app, run_id, suite, path, amount, max_tokens, precisions, seed)
        return {"run_id": check_id, "queue_position": app.store.queue_position(check_id)}

    return run_checks


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError("bad_config", f"settings_json is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UserError("bad_config", "settings_json is not a JSON object.")
    return value


def _public(run: Run) -> dict[str, Any]:
    """Return what a program may know of a run: all but its worker.

    The config is JSON text, because Gradio takes any {"path": ...} for a file.
    """
    values = {key: value for key, value in dataclasses.asdict(run).items() if key not in HIDDEN}
    return values | {"config": json.dumps(run.config)}
