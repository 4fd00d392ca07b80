"""A Space as the hub makes one: a new Python environment with requirements.txt and nothing else, and two visitors."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.environments import ROOT, constrained, install, new_python
from tests.ui.studio import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
START_S = 600


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment."""
    inside = new_python(tmp_path_factory.mktemp("space") / "environment")
    # Without the GPU's libraries where there is such a build: a Space without a GPU has no use for gigabytes of them.
    install(inside, f"torch=={constrained('torch')}+cpu", is_needed=False)
    install(inside, "-r", str(ROOT / "requirements.txt"))
    return inside


@pytest.fixture(scope="module")
def space(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the app, started as a Space starts it."""
    folder = tmp_path_factory.mktemp("space-data")
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "SPACE_ID": "somebody/upq-studio", "UPQ_HOME": str(folder)}
    log = (folder / "app.log").open("wb")
    command = [str(python), "app.py", "--port", str(port), "--without-shipped"]
    with (
        log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + START_S
        while not _answers(url):
            said = (folder / "app.log").read_text(errors="replace")[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(1)
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def call(client: httpx.Client, name: str, arguments: dict[str, object]) -> str:
    """What an endpoint answers, as the text of its events."""
    asked = client.post(f"gradio_api/call/v2/{name}", json=arguments)
    if asked.status_code != 200:
        return asked.text
    return client.get(f"gradio_api/call/{name}/{asked.json()['event_id']}").text


def test_two_visitors_use_a_fresh_space_at_once(space: str) -> None:
    with (
        httpx.Client(base_url=space, timeout=300) as ada,
        httpx.Client(base_url=space, timeout=300) as bob,
    ):
        pages = [client.get("").text for client in (ada, bob)]
        assert all("Visitors quantize the bundled model" in page for page in pages)
        started = call(ada, "start_run", {"preset": "smoke", "method": "rtn"})
        assert '"run_id": 1' in started, started
        assert '"id": 1' in call(ada, "list_runs", {})
        assert '"id": 1' not in call(bob, "list_runs", {})
        assert "There is no run 1." in call(bob, "cancel_run", {"run_id": 1})
        assert "visitors cannot have that" in call(bob, "start_run", {"preset": "overnight"})
        asked = {"run_id": 0, "precision": "FP16", "message": "Say hello.", "max_tokens": 4}
        assert '"done": true' in call(bob, "chat", asked)
        assert "Run 1" in call(ada, "cancel_run", {"run_id": 1})
