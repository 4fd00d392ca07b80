"""An OpenAI-compatible server on a free port of this machine, served from the tests' own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from upq.jobs import Models
from upq.serve import Door, Endpoint, Row, bound, offered
from upq.store import Store

START_S = 30


@contextmanager
def serving(
    store: Store,
    run_id: int,
    precisions: tuple[str, ...] = ("FP16", "INT4", "INT2"),
    *,
    models: Models | None = None,
    places: int = 8,
    key: str = "",
    origin: str = "",
) -> Iterator[str]:
    """The address of a server for a run, without a slash at its end."""
    endpoint = Endpoint(
        models or Models(store), offered(store, run_id, list(precisions)), Row(places)
    )
    listening = bound("127.0.0.1", 0)
    config = uvicorn.Config(
        Door(endpoint.application(), key, origin), log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        endpoint.close()
        listening.close()
