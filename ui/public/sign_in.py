"""Signing in with the Hugging Face Hub, on a Space that has it (`hf_oauth: true`): who did, and the token of theirs.

Gradio keeps both in a signed cookie of the browser, out of reach of scripts. Here they are read from the request that
is being handled; the token is handed on to what sends a model, and is kept nowhere.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from gradio.context import LocalContext
from gradio.utils import get_space
from starlette.types import ASGIApp, Receive, Scope, Send

#: Where the hub sends a browser back to, with somebody signed in.
CALLBACK = "/login/callback"
#: Where Gradio's button sends a browser, and the parameters that Gradio itself reads there.
SENDS = frozenset({"/login/huggingface", "/logout"})
TARGET, REDIRECTS = "_target_url", "_nb_redirects"
#: What Gradio's sign-in needs; a Space that does not offer it misses them.
NEEDED = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")


def is_offered() -> bool:
    """Whether visitors can sign in."""
    has_parts = all(importlib.util.find_spec(name) for name in ("authlib", "itsdangerous"))
    return get_space() is not None and all(name in os.environ for name in NEEDED) and has_parts


def account(scope: Mapping[str, Any]) -> str | None:
    """The name, as a visitor, of whoever is signed in where a request of ASGI comes from.

    It is made from the account's number, which stays when its owner takes another user name.
    """
    found = _found(scope)
    return f"hub {found['userinfo']['sub']}" if found else None


def token() -> str | None:
    """With what whoever sent the event that is being handled may write to the hub; None if they are not signed in."""
    request: Any = LocalContext.request.get(None)
    found = _found(scope_of(request))
    return found["access_token"] if found else None


class WholeTarget:
    """ASGI middleware that brings a browser back to the whole address that it came from.

    Gradio's button appends "?tab=export&run=3" to an address that has parameters, so all but the first are lost.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in SENDS:
            query = whole_target(scope["query_string"].decode("latin-1"))
            scope = {**scope, "query_string": query.encode("latin-1")}
        await self._app(scope, receive, send)


def whole_target(query: str) -> str:
    """A query string whose parameters that Gradio does not read are part of the address to come back to."""
    asked = parse_qsl(query, keep_blank_values=True)
    known = {name: value for name, value in asked if name in (TARGET, REDIRECTS)}
    rest = urlencode([(name, value) for name, value in asked if name not in known])
    if rest and TARGET in known:
        known[TARGET] += ("&" if "?" in known[TARGET] else "?") + rest
    return urlencode(known)


def scope_of(request: Any) -> Mapping[str, Any]:
    """The scope of ASGI behind a request of Gradio's; empty where there is none."""
    scope = getattr(getattr(request, "request", None), "scope", None)
    return scope if isinstance(scope, dict) else {}


def _found(scope: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Gradio noted of somebody who is signed in, until that expires."""
    found = scope.get("session", {}).get("oauth_info")
    return found if found and found.get("expires_at", 0) > time.time() else None
