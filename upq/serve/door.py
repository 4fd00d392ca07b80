"""Who may come in: with the key where there is one, and from no web page that was not named."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from upq.serve.refusal import Refusal

#: Says only that the program runs.
HEALTH = "/health"


class Door:
    """ASGI middleware that refuses a request without the key, and one of a web page from elsewhere.

    key: what every request has to bring; empty: nothing. origin: the web pages that may ask; empty: none, "*": all.
    A browser names the page that asks; other programs name none.
    """

    def __init__(self, app: ASGIApp, key: str = "", origin: str = "") -> None:
        self._app = app
        self._key = key.encode()
        self._origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refusal(scope)):
            await refused.response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        asking = headers.get("origin")
        if asking and self._origin not in ("*", asking):
            sentence = "This web page may not ask; start the server with --cors and its address."
            return Refusal(403, sentence, code="origin_not_allowed")
        kind, _, given = headers.get("authorization", "").partition(" ")
        is_known = kind.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode(), self._key
        )
        if self._key and not is_known and scope["path"] != HEALTH:
            sentence = "The key is missing or wrong; expected the header Authorization: Bearer KEY."
            return Refusal(401, sentence, code="invalid_api_key")
        return None
