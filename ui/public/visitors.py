"""Who asks: somebody who has signed in, else a browser that keeps a signed random name, else one open page.

Whoever signs in with the hub takes along what the browser had.

A name is drawn at the first visit and signed, so that nobody can make up another's. A program, or a browser that keeps
no cookies, is known by its session for as long as that lasts.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from gradio.context import LocalContext
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.public import permissions, sign_in
from upq.errors import UserError
from upq.store import Store

COOKIE = "upq_visitor"
#: The note of the database that keeps the key, so that a restart forgets nobody.
KEY_NOTE = "visitor key"
KEPT_S = 30 * 86_400
#: Asks where no request is handled, such as a thread of the program's own: sees what is everybody's.
NOBODY = "nobody"
#: Files of an export of a run, below the folder of exports.
_EXPORT = re.compile(r"run-(\d{1,18})-")
_FILE = "/gradio_api/file="


class Visitors:
    """Names of visitors: drawn, signed and read. The key is the database's."""

    def __init__(self, store: Store) -> None:
        if store.note(KEY_NOTE) is None:
            store.set_note(KEY_NOTE, secrets.token_hex(32))
        self._key = str(store.note(KEY_NOTE)).encode()

    def new(self) -> str:
        """The cookie of a browser that has none."""
        name = secrets.token_urlsafe(18)
        return f"{name}.{self._signature(name)}"

    def named(self, cookie: str | None) -> str | None:
        """The visitor whom a cookie names; None where nobody here has signed it."""
        name, _, signature = (cookie or "").partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(name).encode())
        return f"browser {name}" if name and is_ours else None

    def asking(self) -> str:
        """Whose event is being handled."""
        request: Any = LocalContext.request.get(None)
        if request is None:
            return NOBODY
        if request.username:
            return _account(request.username)
        if signed_in := sign_in.account(sign_in.scope_of(request)):
            return signed_in
        session = f"page {request.session_hash}" if request.session_hash else NOBODY
        return self.named(dict(request.cookies).get(COOKIE)) or session

    def _signature(self, name: str) -> str:
        return hmac.new(self._key, name.encode(), "sha256").hexdigest()


class VisitorCookie:
    """ASGI middleware that gives a browser its name, and hands files of exports only to those who may see their run.

    hand_over: gives what is one visitor's to another one.
    """

    def __init__(
        self,
        app: ASGIApp,
        visitors: Visitors,
        store: Store,
        exports: Path,
        hand_over: Callable[[str, str], None],
    ) -> None:
        self._app = app
        self._visitors = visitors
        self._store = store
        self._exports = exports.resolve()
        self._hand_over = hand_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        browser = self._visitors.named(_cookies(scope).get(COOKIE))
        if scope["path"].startswith(_FILE):
            visitor = _user(scope) or sign_in.account(scope) or browser or NOBODY
            if not self._may_take(scope["path"].removeprefix(_FILE), visitor):
                refusal = JSONResponse({"detail": "There is no such file."}, 404)
                await refusal(scope, receive, send)
                return
        elif browser is None:
            send = _with_cookie(send, _set_cookie(self._visitors.new(), _is_secure(scope)))
        elif scope["path"] == sign_in.CALLBACK:
            send = self._handing_over(send, scope, browser)
        await self._app(scope, receive, send)

    def _handing_over(self, send: Send, scope: Scope, browser: str) -> Send:
        """A `send` before which whoever has just signed in gets what their browser had."""

        async def send_afterwards(message: Message) -> None:
            signed_in = sign_in.account(scope)
            if signed_in and message["type"] == "http.response.start":
                await run_in_threadpool(self._hand_over, browser, signed_in)
            await send(message)

        return send_afterwards

    def _may_take(self, path: str, visitor: str) -> bool:
        place = Path(path).resolve()
        if not place.is_relative_to(self._exports):
            return True  # Gradio serves no other place but what it made for a download, under a name nobody guesses
        inside = place.relative_to(self._exports)
        run_id = _EXPORT.match(inside.parts[0]) if inside.parts else None
        try:
            return run_id is not None and permissions.may_see(
                visitor, self._store.run(int(run_id[1]))
            )
        except UserError:
            return False


def _user(scope: Scope) -> str | None:
    """Who has signed in with a name and a password of this app (--auth-file), as a visitor, by Gradio's cookie."""
    served, cookies = scope["app"], _cookies(scope)
    names = (f"access-token-{kind}{served.cookie_id}" for kind in ("", "unsecure-"))
    token = next((cookies[name] for name in names if name in cookies), None)
    name = served.tokens.get(token)
    return _account(name) if name else None


def _account(name: str) -> str:
    return f"user {name}"


def _cookies(scope: Scope) -> dict[str, str]:
    try:
        jar = SimpleCookie(Headers(scope=scope).get("cookie", ""))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def _is_secure(scope: Scope) -> bool:
    """Whether the browser speaks TLS, with us or with the Space's own server before us."""
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "")
    return "https" in (scope["scheme"], forwarded.partition(",")[0].strip())


def _set_cookie(value: str, secure: bool) -> str:
    """The header. A Space is shown inside of another site's page, where only a cookie of that place is kept."""
    kind = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    return f"{COOKIE}={value}; Path=/; Max-Age={KEPT_S}; HttpOnly; {kind}"


def _with_cookie(send: Send, cookie: str) -> Callable[[Message], Any]:
    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("set-cookie", cookie)
        await send(message)

    return send_with_cookie
