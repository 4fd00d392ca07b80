"""The named endpoints for programs: each takes a request of ui.requests, typed and documented, and answers it.

An error is one sentence. No endpoint returns a file, and the only paths taken are those of a model, a data set and a
suite.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gradio.events import api as register

from ui import requests
from ui.app_state import App, plain_errors
from ui.chat import column, conversation_of
from ui.checks import form
from ui.export import made, offers_of, told
from ui.requests import OfRun, Request
from upq.config import preset, with_settings
from upq.errors import UserError
from upq.evaluation import tallies
from upq.jobs import compared
from upq.jobs.export_folder import Wanted
from upq.store import Run

HIDDEN = frozenset({"worker", "pid", "lease_s", "lease_until", "owner", "aside_at_s"})


class Endpoint(NamedTuple):
    """What may be asked, and the function that answers; one that yields streams."""

    request: type[Request]
    answer: Callable[[App, Any], Any]
    returns: type


def build(app: App) -> None:
    """Register the endpoints. Must be called inside a gradio.Blocks."""
    for name, endpoint in ENDPOINTS.items():
        register(_function(app, name, endpoint), api_name=name)


def request_of(function: Any) -> type[Request] | None:
    """Tell what a registered function may be asked; None for an event of the page."""
    return getattr(function, "request", None)


def _function(app: App, name: str, endpoint: Endpoint) -> Callable[..., Any]:
    """Return the endpoint as Gradio wants it: a function with types, defaults and a docstring."""
    request, answer, returns = endpoint

    def call(*values: Any) -> Any:
        with plain_errors():
            return answer(app, request.at(values))

    def stream_answer(*values: Any) -> Iterator[Any]:
        with plain_errors():
            yield from answer(app, request.at(values))

    function: Any = stream_answer if inspect.isgeneratorfunction(answer) else call
    arguments = request.model_fields.items()
    function.request = request
    function.__name__ = name
    meanings = [
        f"    {name}: {argument.description}; {request.expected(name)}."
        for name, argument in arguments
    ]
    function.__doc__ = "\n".join([request.__doc__ or "", "", "Args:", *meanings])
    function.__annotations__ = {name: argument.annotation for name, argument in arguments}
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if argument.is_required() else argument.default,
                annotation=argument.annotation,
            )
            for name, argument in arguments
        ],
        return_annotation=returns,
    )
    return function


def _start_run(app: App, asked: requests.StartRun) -> dict[str, Any]:
    changes = {**_json_object(asked.settings_json), "model.source": asked.model}
    config = with_settings(preset(asked.preset, asked.method), changes)
    run_id = app.store.enqueue(app.ready(config, changes), name=asked.name, note=asked.note)
    return {"run_id": run_id, "queue_position": app.store.queue_position(run_id)}


def _run_status(app: App, asked: OfRun) -> dict[str, Any]:
    run = app.store.run(asked.run_id)
    artifacts = [
        {
            "precision": row.precision,
            "size_bytes": row.size_bytes,
            "bits_per_weight": row.bits_per_weight,
        }
        for row in app.store.artifacts(run.id)
    ]
    measurements = app.store.measurements(run.id)
    return {**_public(run), "artifacts": artifacts, "measurements": measurements}


def _cancel_run(app: App, asked: OfRun) -> str:
    return app.store.request_cancel(asked.run_id)


def _resume_run(app: App, asked: OfRun) -> str:
    return app.store.resume(asked.run_id)


def _list_runs(app: App, _: requests.ListRuns) -> list[dict[str, Any]]:
    return [_public(run) for run in app.store.runs()]


def _chat(app: App, asked: requests.Chat) -> Iterator[dict[str, Any]]:
    if asked.run_id:
        app.store.run(asked.run_id)
    state = column(app, asked.precision, asked.run_id)
    if not state.source:
        found = state.training or f"Run {asked.run_id} has no {asked.precision}."
        raise UserError("artifact_not_found", found, "Start a run, or wait until it is packed.")
    served = app.models.get(state.run_id, asked.precision, state.source)
    conversation = conversation_of(asked.system, [{"role": "user", "content": asked.message}])
    for piece in served.answer(conversation, asked.decoding):
        told = dataclasses.asdict(piece)
        del told["ids"]
        yield told


def _list_conversations(app: App, asked: requests.ListConversations) -> dict[str, Any]:
    found = app.store.conversations.find(asked.search, asked.limit)
    lines = [line._asdict() for line in found.lines]
    return {"total": found.total, "conversations": lines}


def _conversation(app: App, asked: requests.OneConversation) -> dict[str, Any]:
    kept = app.store.conversations.get(asked.conversation)
    content = kept.content.model_dump()
    return {**kept.head._asdict(), "models": content["authors"], "turns": content["exchanges"]}


def _compare(app: App, asked: requests.Compare) -> dict[str, Any]:
    request = compared.Request(
        message=asked.message,
        system=asked.system,
        decoding=asked.decoding,
        answer_of=asked.answer_of,
        precisions=asked.precisions,
    )
    return compared.compared(app.models, app.store.run(asked.run_id), request).to_json()


def _votes(app: App, asked: requests.Votes) -> list[dict[str, Any]]:
    run = app.store.run(asked.run_id)
    return [tally.as_values() for tally in tallies(app.store.votes.outcomes(run.id))]


def _list_exports(app: App, asked: requests.ListExports) -> list[dict[str, Any]]:
    return offers_of(app, asked.run_id, asked.precision)


def _make_export(app: App, asked: requests.MakeExport) -> dict[str, Any]:
    return told(made(app, Wanted(asked.run_id, asked.precision, asked.format)))


def _run_checks(app: App, asked: requests.RunChecks) -> dict[str, Any]:
    check_id = form.enqueue(app, asked)
    return {"run_id": check_id, "queue_position": app.store.queue_position(check_id)}


ENDPOINTS = {
    "start_run": Endpoint(requests.StartRun, _start_run, dict),
    "run_status": Endpoint(requests.RunStatus, _run_status, dict),
    "cancel_run": Endpoint(requests.CancelRun, _cancel_run, str),
    "resume_run": Endpoint(requests.ResumeRun, _resume_run, str),
    "list_runs": Endpoint(requests.ListRuns, _list_runs, list),
    "chat": Endpoint(requests.Chat, _chat, dict),
    "list_conversations": Endpoint(requests.ListConversations, _list_conversations, dict),
    "conversation": Endpoint(requests.OneConversation, _conversation, dict),
    "compare": Endpoint(requests.Compare, _compare, dict),
    "run_checks": Endpoint(requests.RunChecks, _run_checks, dict),
    "votes": Endpoint(requests.Votes, _votes, list),
    "list_exports": Endpoint(requests.ListExports, _list_exports, list),
    "make_export": Endpoint(requests.MakeExport, _make_export, dict),
}


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UserError("bad_config", f"settings_json is not JSON: {error}.") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of 4,300 digits, or brackets in brackets
        message = "settings_json holds a number or a nesting beyond reason; expected settings."
        raise UserError("bad_config", message) from error
    if not isinstance(value, dict):
        raise UserError("bad_config", "settings_json is not a JSON object.")
    return value


def _public(run: Run) -> dict[str, Any]:
    """Return what a program may know of a run: all but its worker and its owner.

    The config is JSON text, because Gradio takes any {"path": ...} for a file.
    """
    values = {key: value for key, value in dataclasses.asdict(run).items() if key not in HIDDEN}
    return values | {"config": json.dumps(run.config)}
