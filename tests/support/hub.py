"""A stand-in for the Hugging Face Hub on this machine: what its client calls to make a model, send files, get them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from tests.support.http_stand_in import served

#: Files of at least so many bytes go by way of large file storage, as weights do there.
LARGE_BYTES = 20_000


class Hub:
    """What the stand-in knows. token: who may write, as OWNER. refusals: the beginning of a path -> (status, words).

    delays: the beginning of a path -> seconds until it is answered, cut short when the stand-in ends.
    """

    def __init__(self, owner: str, token: str) -> None:
        self.owner, self.token = owner, token
        self.models: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.delays: dict[str, float] = {}
        self.ends = threading.Event()
        self.calls: list[str] = []
        self.address = ""

    def wait(self, path: str) -> None:
        """Take as long as the delays say."""
        for start, seconds in self.delays.items():
            if path.startswith(start):
                self.ends.wait(seconds)

    def download(self, path: str) -> bytes | None:
        """The file at OWNER/NAME/resolve/REVISION/FILE, if that is what a path asks for."""
        parts = path.strip("/").split("/", 4)
        if len(parts) != 5 or parts[2] != "resolve":
            return None
        owner, name, _, _, file = parts
        return self.models.get(f"{owner}/{name}", {}).get(file)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """(status, JSON) of a call."""
        self.calls.append(f"{method} {path}")
        for start, refusal in self.refusals.items():
            if path.startswith(start):
                return refusal[0], {"error": refusal[1]}
        if path.startswith("/storage/"):  # its addresses are signed, and no token goes along
            digest = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == digest
            self.large[digest] = body
            return 200, {}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": self.owner, "type": "user"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            upload = f"{self.address}/storage/"
            objects = [
                {**one, "actions": {"upload": {"href": upload + one["oid"]}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] >= LARGE_BYTES else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            return self._commit(path, body)
        return 404, {"error": "Not found"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != self.owner:
            words = f'You don\'t have the rights to create a model under the namespace "{wanted["organization"]}"'
            return 403, {"error": words}
        if repo in self.models:
            return 409, {
                "error": "You already created this model repo",
                "url": f"{self.address}/{repo}",
            }
        self.models[repo] = {}
        self.private[repo] = wanted.get("visibility") == "private"
        return 200, {"url": f"{self.address}/{repo}"}

    def _commit(self, path: str, body: bytes) -> tuple[int, Any]:
        repo = "/".join(path.split("/")[3:5])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.models[repo][value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                self.models[repo][value["path"]] = self.large[value["oid"]]
        return 200, {"commitUrl": f"{self.address}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}


@contextmanager
def in_place_of_the_hub(patch: pytest.MonkeyPatch, token: str = "hf_secret") -> Iterator[Hub]:
    """A stand-in that the hub's client asks instead of the hub; `me` is logged in with the token."""
    with running("me", token) as hub:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", token)
        yield hub


@contextmanager
def running(owner: str, token: str) -> Iterator[Hub]:
    """A stand-in that answers at its address until the end."""
    hub = Hub(owner, token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body, path = self._body(), self.path.partition("?")[0]
            hub.wait(path)
            if self.command in ("GET", "HEAD") and (found := hub.download(path)) is not None:
                self._send_file(found)
                return
            token = self.headers.get("authorization", "")
            status, value = hub.answer(self.command, path, token, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _send_file(self, content: bytes) -> None:
            hub.calls.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("x-repo-commit", "0" * 40)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("transfer-encoding", ""):
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = _any

        def log_message(self, *_: Any) -> None: ...

    with served(Handler) as hub.address:
        try:
            yield hub
        finally:
            hub.ends.set()
