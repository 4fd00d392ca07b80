"""What comes from outside is looked at here before Gradio sees it: routes, the size of what is sent, and its kind.

Gradio's server has routes that keep uploads and recordings, fetch addresses or edit the app. The page needs none of
them, so only the routes that it and the endpoints use are open.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.api import ENDPOINTS, request_of
from ui.app_state import plain_errors
from upq.errors import UserError, shown
from upq.files import STAGING_PREFIX, clean_text

#: The routes that are open. Of files, those that Gradio serves from this machine, but none that is still being written;
#: an address is never fetched.
OPEN = re.compile(
    r"/|/(static|assets|svelte)/.+|/(favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/.+)?)"
    r"|/(config|login|logout|theme\.css)/?|/login/(huggingface|callback)"
    r"|/gradio_api/(user|login_check|token|app_id|info|openapi\.json|startup-events|theme\.css|cancel|reset)/?"
    r"|/gradio_api/(queue|call|run)/.+"
    rf"|/gradio_api/file=(?!https?:)(?!.*/{re.escape(STAGING_PREFIX)}).+",
    re.IGNORECASE,
)
#: A file is kept, never opened in the page: an export holds files of a stranger's model.
FILE, KEPT, OPENED = "/gradio_api/file=", b"attachment", b"inline"
#: A call of an endpoint: with its arguments by name (v2), or by place.
CALL = re.compile(r"/gradio_api/call/(?P<v2>v2/)?(?P<name>[^/]*)/?")
#: Bytes of a request. The longest message, system prompt or settings fit in, however they are escaped.
MAX_BODY = 1 << 20

_logger = logging.getLogger(__name__)


class _Refused(Exception):
    """An HTTP status and a sentence for whoever sent the request."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        # What the client still sends is not read.
        headers = {"connection": "close"}
        self.answer = JSONResponse({"detail": clean_text(sentence)}, status, headers)


class Gate:
    """ASGI middleware that answers in a sentence what the page and the endpoints do not need, or cannot read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def send_noticed(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if scope["path"].startswith(FILE) and message["type"] == "http.response.start":
                message["headers"] = [_to_be_kept(*header) for header in message["headers"]]
            await send(message)

        try:
            _check_route(scope["path"])
            if scope["method"] == "POST":
                body = await _whole_body(receive)
                _check_call(scope["path"], body)
                receive = _once_more(body, receive)
            await self.app(scope, receive, send_noticed)
        except _Refused as refused:
            await refused.answer(scope, receive, send)
        except Exception as error:
            if has_begun and _is_of_closed_page(scope, error):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if has_begun:
                raise
            _logger.warning("%s cannot be answered: %r", shown(scope["path"]), error)
            sentence = "This request cannot be read; docs/api.md shows what the endpoints take."
            await _Refused(400, sentence).answer(scope, receive, send)


def _is_of_closed_page(scope: Scope, error: Exception) -> bool:
    """Tell whether an answer ended because its page was closed or loaded again: Gradio then misses the page's session
    while it still streams to it, and says so with a 404 or stumbles over the name of the session.
    """
    cause = error.__cause__
    if isinstance(cause, HTTPException) and cause.status_code == HTTPStatus.NOT_FOUND:
        return True
    sessions = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])
    return isinstance(error, KeyError) and error.args[:1] == tuple(sessions[:1])


def _check_route(path: str) -> None:
    if not OPEN.fullmatch(path):
        sentence = f"The route {shown(path)} is closed; neither the page nor an endpoint needs it."
        raise _Refused(404, sentence)


def _to_be_kept(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header of a file's answer, such that a browser keeps the file."""
    if name.lower() != b"content-disposition":
        return name, value
    return name, KEPT + value.removeprefix(OPENED).removeprefix(KEPT)


async def _whole_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "The connection ended before the request did.")
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > MAX_BODY:
            raise _Refused(413, f"The request is too large; expected at most {MAX_BODY:,} bytes.")
        if not message.get("more_body"):
            return b"".join(parts)


def _once_more(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body which was read, and then what the connection gives."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return next(messages, None) or await receive()

    return replay


def _check_call(path: str, body: bytes) -> None:
    """Look at a call of an endpoint: its name, and its arguments where they have names."""
    called = CALL.fullmatch(path)
    if called is None:
        return
    if called["name"] not in ENDPOINTS:
        expected = f"expected {', '.join(ENDPOINTS)}."
        raise _Refused(404, f"There is no endpoint {shown(called['name'])}; {expected}")
    if not called["v2"]:
        return
    try:
        arguments = json.loads(body)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise _Refused(422, "The body is no JSON object; expected the arguments by name.")
    try:
        ENDPOINTS[called["name"]].request.of(arguments)
    except UserError as error:
        raise _Refused(422, f"{error.message} {error.hint}".strip()) from error


class Page(gr.Blocks):
    """Blocks that look at the values of an event before anything is done with them, and take no file from outside.

    guards: further middleware that is served with them.
    """

    guards: Sequence[Any] = ()

    def get_config_file(self) -> Any:
        """What the browser is told of the page: to hold no connection for as long as the page is open.

        A browser has six to a host. Gradio would hold one to learn when a page closes, and once six were held nothing
        more would happen in any page. `MOST_SESSIONS` of `ui` bounds what is kept of pages instead.
        """
        config = super().get_config_file()
        config["connect_heartbeat"] = False
        return config

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Judge the arguments of an endpoint and add those that are missing; Gradio calls this first of all."""
        with plain_errors():
            if request := request_of(block_fn.fn):
                asked = request.at(inputs)
                inputs[:] = [getattr(asked, name) for name in request.model_fields]
            elif len(inputs) < len(block_fn.inputs) or not all(map(_is_plain, inputs)):
                expected = f"{len(block_fn.inputs)} texts, numbers or lists of these"
                raise UserError(
                    "bad_argument", f"The page sends other values; expected {expected}."
                )


def _is_plain(value: Any) -> bool:
    """Tell whether a value holds no object: Gradio takes some of them for files, and fetches these."""
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, dict | list) for part in parts)
