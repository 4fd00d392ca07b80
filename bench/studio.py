"""A running app on a data folder of its own, for benchmarks that look at it from outside."""

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

from upq.machine import ROOT

CHROMIUM = "/usr/bin/chromium"
START_S = 180.0
STOP_S = 30.0
_LOOK_S = 0.2


@dataclass(frozen=True)
class Studio:
    """Its address and its process."""

    url: str
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """Seconds that its process has computed so far, its workers not counted."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Studio]:
    """The app on this data folder until the end of the block. Raises RuntimeError if it does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--data-dir", str(folder), "--port", str(port), *options]
    log = folder / "app.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    studio = Studio(f"http://127.0.0.1:{port}/", process)
    try:
        _wait_for(studio, log)
        yield studio
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(studio: Studio, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and studio.process.poll() is None:
        try:
            urllib.request.urlopen(studio.url, timeout=_LOOK_S * 10).close()
            return
        except OSError:
            time.sleep(_LOOK_S)
    raise RuntimeError(f"the app did not start: {log.read_text(errors='replace')[-1000:]}")
