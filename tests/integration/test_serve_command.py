"""`python -m upq serve` as a program: it says where it is, answers, and ends at Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.unit.jobs.test_served import stored_run
from upq.__main__ import main
from upq.models import load
from upq.store import open_store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    place = tmp_path_factory.mktemp("serving")
    store = open_store(place)
    stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    store.close()
    return place


def test_it_answers_with_the_key_until_it_is_told_to_end(folder: Path) -> None:
    command = [sys.executable, "-m", "upq", "--data-dir", str(folder), "serve", "1"]
    command += ["--precision", "INT4,INT2", "--port", "0", "--host", "0.0.0.0"]
    environment = {**os.environ, "UPQ_SERVE_KEY": "secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        lines = [server.stdout.readline() for _ in range(3)]
        assert re.match(r"upq-1-int4: [\d.]+ kB, loaded in ", lines[0])
        found = re.search(r"Base URL http://0\.0\.0\.0:(\d+)/v1, models (.*)\. Ctrl-C", lines[2])
        assert found is not None, lines
        assert found[2] == "upq-1-int4, upq-1-int2"
        address = f"http://127.0.0.1:{found[1]}/v1"
        headers = {"Authorization": "Bearer secret"}
        body = {"model": "upq-1-int2", "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(
            f"{address}/chat/completions",
            json=body | {"max_tokens": 4},
            headers=headers,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert httpx.get(f"{address}/models").status_code == 401
        server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=30)
    assert (server.returncode, rest, errors) == (0, "Stopped.\n", "")


def test_an_open_address_without_a_key_is_warned_of(folder: Path) -> None:
    command = [sys.executable, "-m", "upq", "--data-dir", str(folder), "serve", "1"]
    command += ["--precision", "INT2", "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        assert server.stderr is not None
        warning = server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert warning == "Anyone who reaches this address can use it; see --key.\n"


def test_an_address_that_is_taken_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--data-dir", str(folder), "serve", "1", "--precision", "INT2"]
        assert main([*arguments, "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use." in error
    assert main(["--data-dir", str(folder), "serve", "7"]) == 2
    assert "There is no run 7." in capsys.readouterr().err
