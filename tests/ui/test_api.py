"""The named endpoints of a really running app, as a program uses them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
from tests.ui.studio import Studio, start_app, stop_app
from ui.theme import CONTENT_SECURITY_POLICY
from upq.store import open_store

pytestmark = pytest.mark.slow

FAST = json.dumps({"data.held_out": 2, "data.max_rows": 4, "measure.baselines": False})
SLOW = json.dumps({"data.held_out": 2, "data.max_rows": 4, "int2.distill.tokens": 5_000_000})
WAIT_S = 120
ENDPOINTS = {
    "/start_run",
    "/run_status",
    "/cancel_run",
    "/resume_run",
    "/list_runs",
    "/chat",
    "/compare",
    "/run_checks",
    "/votes",
    "/list_exports",
    "/make_export",
}


@pytest.fixture(scope="module")
def client(studio: Studio) -> Iterator[Client]:
    client = Client(studio.url, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def finished_run(client: Client, studio: Studio) -> int:
    run_id = start(client, studio, FAST)
    status = wait_for(client, run_id, {"done", "failed"})
    assert status["state"] == "done", status["error_message"]
    return run_id


def start(client: Client, studio: Studio, settings: str) -> int:
    started = client.predict(str(studio.model), "upq", "smoke", settings, api_name="/start_run")
    return started["run_id"]


def wait_for(client: Client, run_id: int, states: set[str]) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = client.predict(run_id, api_name="/run_status")
        if status["state"] in states:
            return status
        time.sleep(0.3)
    raise AssertionError(f"run {run_id} is still {status['state']} in {status['stage']}")


def test_a_run_started_by_a_program_leaves_both_artifacts(
    client: Client, finished_run: int
) -> None:
    status = client.predict(finished_run, api_name="/run_status")
    sizes = {artifact["precision"]: artifact["bits_per_weight"] for artifact in status["artifacts"]}
    assert sizes == {"INT4": pytest.approx(4.25), "INT2": pytest.approx(2.25)}
    assert {"INT4", "INT2"} <= {measurement["label"] for measurement in status["measurements"]}
    assert json.loads(status["config"])["preset"] == "smoke"
    assert finished_run in [run["id"] for run in client.predict(api_name="/list_runs")]


@pytest.mark.parametrize("precision", ["FP16", "INT4", "INT2"])
def test_chat_streams_and_ends_with_a_complete_answer(
    client: Client, finished_run: int, precision: str
) -> None:
    job = client.submit(finished_run, precision, "hello", max_tokens=40, api_name="/chat")
    pieces: list[Any] = list(job)
    assert pieces[-1]["done"] is True
    assert pieces[-1]["finish"] in ("stop", "length")
    assert 1 <= pieces[-1]["tokens"] <= 40
    assert [piece["tokens"] for piece in pieces] == sorted(piece["tokens"] for piece in pieces)


def test_the_same_question_gets_the_same_greedy_answer(client: Client, finished_run: int) -> None:
    def ask() -> str:
        answer = client.predict(finished_run, "INT2", "hello", max_tokens=24, api_name="/chat")
        return answer["text"]

    first = ask()
    assert first
    assert ask() == first


def test_a_check_run_judges_every_prompt(client: Client, finished_run: int) -> None:
    precisions = ["FP16", "INT2"]
    started = client.predict(finished_run, "builtin", "", 3, 16, precisions, api_name="/run_checks")
    status = wait_for(client, started["run_id"], {"done", "failed"})
    assert status["state"] == "done", status["error_message"]
    assert status["parent_id"] == finished_run


def test_a_cancelled_run_can_be_resumed_and_cancelled_again(client: Client, studio: Studio) -> None:
    run_id = start(client, studio, SLOW)
    wait_for(client, run_id, {"running"})
    client.predict(run_id, api_name="/cancel_run")
    assert wait_for(client, run_id, {"cancelled"})["error_message"] == ""
    assert "queued again" in client.predict(run_id, api_name="/resume_run")
    wait_for(client, run_id, {"running"})
    client.predict(run_id, api_name="/cancel_run")
    wait_for(client, run_id, {"cancelled"})


@pytest.mark.parametrize(
    ("endpoint", "arguments", "words"),
    [
        ("/start_run", ("bundled", "upq", "huge"), "preset is 'huge'; expected one of smoke"),
        ("/start_run", ("bundled", "upq", "smoke", "[1]"), "not a JSON object"),
        ("/start_run", ("bundled", "upq", "smoke", '{"sead": 1}'), "Unknown setting sead"),
        ("/run_status", (4242,), "There is no run 4242."),
        ("/cancel_run", (4242,), "There is no run 4242."),
        ("/chat", (4242, "FP16", "hi"), "There is no run 4242."),
        ("/chat", (0, "INT3", "hi"), "precision is 'INT3'"),
        ("/chat", (0, "FP16", "  "), "The message is empty."),
        (
            "/chat",
            (0, "FP16", "hi", "", 0),
            "max_tokens is 0; expected a whole number from 1 to 8192.",
        ),
        ("/run_checks", (0, "ifeval", "/nowhere/suite.jsonl"), "suite.jsonl cannot be read"),
        ("/run_checks", (0, "builtin", "", 3, 16, ["INT2"]), "there is FP16"),
    ],
)
def test_every_mistake_is_answered_by_one_sentence(
    client: Client, endpoint: str, arguments: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, api_name=endpoint)
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_only_the_named_endpoints_are_public_and_each_is_documented(client: Client) -> None:
    described = client.view_api(return_format="dict", print_info=False)
    assert isinstance(described, dict)
    named = described["named_endpoints"]
    assert set(named) == ENDPOINTS
    assert all(endpoint["description"] for endpoint in named.values())


def test_no_file_of_the_data_folder_is_served(studio: Studio) -> None:
    for name in ("upq.db", "app.log", "../passwd"):
        path = urllib.parse.quote(str(studio.folder / name))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{studio.url}gradio_api/file={path}")
        assert (studio.folder / name).is_file() is (name != "../passwd")
        assert caught.value.code == 403
        caught.value.close()


def test_every_answer_carries_the_security_headers(studio: Studio) -> None:
    with urllib.request.urlopen(studio.url) as answer:
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_sigterm_ends_app_and_worker_and_the_demo_run_stays_resumable(tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("ada:secret\n")
    url, process = start_app(tmp_path, "--demo", "--auth-file", str(users))
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}gradio_api/info")
    assert caught.value.code == 401
    caught.value.close()
    signed_in = Client(url, auth=("ada", "secret"), verbose=False)
    (run,) = signed_in.predict(api_name="/list_runs")
    signed_in.close()
    assert (run["preset"], run["model"]) == ("quick", "bundled")
    assert stop_app(process) == 0
    store = open_store(tmp_path)
    assert store.run(run["id"]).state in ("queued", "interrupted")
    store.close()


def test_an_auth_file_without_users_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "users.txt"
    empty.write_text("no colon here\n")
    with pytest.raises(SystemExit, match=r"users\.txt holds no line"):
        app.credentials(empty)
    assert app.credentials(None) is None


def test_this_environment_passes_the_preflight() -> None:
    assert app.preflight() == ""
