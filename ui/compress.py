"""The page itself is sent compressed: it holds the whole layout, half a megabyte of text."""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

#: What is large and text; streams of events and files are sent as they are.
ROUTES = frozenset({"/", "/config"})


class CompressedPage:
    """ASGI middleware that compresses the answers of ROUTES for those who can read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._compressed = GZipMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._compressed if scope.get("path") in ROUTES else self._plain
        await app(scope, receive, send)
