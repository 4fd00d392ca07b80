"""A Space as the hub makes one: a new Python environment with requirements.txt and nothing else, and two visitors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ui.studio import ROOT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
START_S = 600


def constrained(name: str) -> str:
    """The version of a package that the tests run with."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def _runs(name: str) -> bool:
    """Whether there is such a program and it works; one on PATH may be a shim of a version that is not chosen."""
    found = shutil.which(name)
    return bool(found) and not subprocess.run([found, "-c", ""], capture_output=True).returncode


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment; 3.12, which a Space has, where there is one."""
    folder = tmp_path_factory.mktemp("space") / "environment"
    base = next(name for name in ("python3.12", sys.executable) if _runs(name))
    subprocess.run([base, "-m", "venv", str(folder)], check=True, timeout=300)
    inside = folder / "bin" / "python"
    install = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Without the GPU's libraries where there is such a build: a Space without a GPU has no use for gigabytes of them.
    plain = f"torch=={constrained('torch')}+cpu"
    subprocess.run([*install, plain], check=False, timeout=1800, capture_output=True)
    done = subprocess.run(
        [*install, "-r", str(ROOT / "requirements.txt")],
        check=False,
        timeout=1800,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"the packages cannot be had here: {done.stderr[-300:]}")
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
