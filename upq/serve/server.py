"""The server around the endpoint: an address, a key, and an end by Ctrl-C that leaves no answer hanging."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from upq.errors import UserError
from upq.serve.door import Door
from upq.serve.endpoint import Endpoint

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Seconds that an answer which is being sent has when the server ends.
LAST_S = 5


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host in LOOPBACK


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises UserError("address_in_use")."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else error
        raise UserError(
            "address_in_use",
            f"The server cannot listen on {host}, port {port}: {reason}.",
            "Choose another --port, or end the program that has this one.",
        ) from error


def run_server(endpoint: Endpoint, listening: socket.socket, key: str, origin: str) -> None:
    """Serve until Ctrl-C or SIGTERM. key, origin: as upq.serve.door has them; empty: none."""
    app = Door(endpoint.application(), key, origin)
    if origin:
        app = CORSMiddleware(app, allow_origins=[origin], allow_methods=["*"], allow_headers=["*"])
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", timeout_graceful_shutdown=LAST_S
    )
    with suppress(KeyboardInterrupt):  # uvicorn has ended by then, and passes the signal on
        uvicorn.Server(config).run(sockets=[listening])
    endpoint.close()
