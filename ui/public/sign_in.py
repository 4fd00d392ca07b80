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

from gradio.context import LocalContext
from gradio.utils import get_space

#: Where the hub sends a browser back to, with somebody signed in.
CALLBACK = "/login/callback"
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


def scope_of(request: Any) -> Mapping[str, Any]:
    """The scope of ASGI behind a request of Gradio's; empty where there is none."""
    scope = getattr(getattr(request, "request", None), "scope", None)
    return scope if isinstance(scope, dict) else {}


def _found(scope: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Gradio noted of somebody who is signed in, until that expires."""
    found = scope.get("session", {}).get("oauth_info")
    return found if found and found.get("expires_at", 0) > time.time() else None
