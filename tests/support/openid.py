"""A stand-in for the Hugging Face Hub as the provider of OpenID: whoever comes is signed in as one account at once."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.http_stand_in import served

CLIENT, SECRET = "the-client", "the-secret-of-the-client"
SCOPES = "openid profile write-repos manage-repos"
HOUR_S = 3600


class Provider:
    """What the stand-in knows. account: the number and the name of who signs in; token: what their browser gets.

    asked: the scopes that were asked for. codes: a code -> the nonce that came with it.
    """

    def __init__(self, token: str, lasts_s: int = HOUR_S) -> None:
        # It comes with gradio[oauth], which most people lack.
        from joserfc.jwk import RSAKey  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        self.account, self.token, self.lasts_s = ("42", "me"), token, lasts_s
        self.key = RSAKey.generate_key(2048, parameters={"kid": "1"})
        self.asked: list[str] = []
        self.codes: dict[str, str] = {}
        self.address = ""

    def configuration(self) -> dict[str, Any]:
        """Where everything is."""
        return {
            "issuer": self.address,
            "authorization_endpoint": f"{self.address}/oauth/authorize",
            "token_endpoint": f"{self.address}/oauth/token",
            "jwks_uri": f"{self.address}/oauth/jwks",
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def sent_back(self, query: dict[str, str]) -> str:
        """The address to which a browser is sent that somebody has signed in with."""
        assert (query["client_id"], query["response_type"]) == (CLIENT, "code")
        self.asked.append(query["scope"])
        code = secrets.token_hex(8)
        self.codes[code] = query["nonce"]
        mark = "&" if urlsplit(query["redirect_uri"]).query else "?"
        answer = urlencode({"code": code, "state": query["state"]})
        return f"{query['redirect_uri']}{mark}{answer}"

    def tokens(self, form: dict[str, str], authorization: str) -> dict[str, Any]:
        """What a code is exchanged for, once, by who knows the client's secret."""
        from joserfc import jwt  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        expected = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        assert authorization == f"Basic {expected}"
        number, name = self.account
        now = int(time.time())
        claims = {
            "iss": self.address,
            "aud": CLIENT,
            "sub": number,
            "iat": now,
            "exp": now + HOUR_S,
            "nonce": self.codes.pop(form["code"]),
            "name": name.title(),
            "preferred_username": name,
            "profile": f"{self.address}/{name}",
            "picture": f"{self.address}/{name}.png",
        }
        return {
            "access_token": self.token,
            "token_type": "bearer",
            "expires_in": self.lasts_s,
            "scope": SCOPES,
            "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key),
        }


@contextmanager
def running(token: str) -> Iterator[Provider]:
    """A stand-in that answers at its address until the end."""
    provider = Provider(token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/oauth/authorize":
                self.send_response(302)
                self.send_header("location", provider.sent_back(query))
                self.end_headers()
            elif parts.path == "/oauth/jwks":
                self._json({"keys": [provider.key.as_dict(private=False)]})
            else:
                assert parts.path == "/.well-known/openid-configuration"
                self._json(provider.configuration())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._json(provider.tokens(form, self.headers.get("authorization", "")))

        def _json(self, value: Any) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with served(Handler) as provider.address:
        yield provider
