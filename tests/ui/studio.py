"""Starting and ending a really running app on a data folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 90
STOP_S = 30


@dataclass(frozen=True)
class Studio:
    """A running app: its address, its data folder and the tiny model that it can quantize in seconds."""

    url: str
    folder: Path
    model: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A port that no program listens on. Gradio's own search leaves a socket open at each port that is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_app(
    folder: Path, *options: str, shipped: bool = False, hub: str = ""
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start `python app.py` and wait until it answers; return its address and process.

    shipped starts it with the models that ship with the app; without them a new data folder stays empty. hub is the
    address of a stand-in of the hub; without one the app is offline.
    """
    port = free_port()
    log = (folder / "app.log").open("wb")
    command = [sys.executable, "app.py", "--data-dir", str(folder), "--port", str(port), *options]
    command += [] if shipped else ["--without-shipped"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0" if hub else "1"}
    if hub:
        environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub")}
    with log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return url, process
        except OSError:
            time.sleep(0.3)
    process.kill()
    raise RuntimeError((folder / "app.log").read_text(errors="replace")[-2000:])


def stop_app(process: subprocess.Popen[bytes]) -> int:
    """Ask the app to end as Ctrl-C does and return its exit code."""
    process.send_signal(signal.SIGTERM)
    return process.wait(STOP_S)


@contextmanager
def running(folder: Path, *, shipped: bool = False, hub: str = "") -> Iterator[str]:
    """The address of an app that is started as `start_app` does, and ends with the block."""
    url, process = start_app(folder, shipped=shipped, hub=hub)
    try:
        yield url
    finally:
        stop_app(process)
