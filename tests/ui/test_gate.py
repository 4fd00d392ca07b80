"""What strangers send to a running app: files, addresses to fetch, requests without end, values that no page sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from tests.ui.open_app import OpenApp
from ui.gate import MAX_BODY, Gate
from ui.requests import LARGEST

FILE = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.bin"\r\n\r\n'
END = b"\r\n--x--\r\n"
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
#: What Gradio takes for a file, and fetches where it is an address.
ADDRESS = {"path": "http://127.0.0.1:9/secret", "meta": {"_type": "gradio.FileData"}}


def stored(app: OpenApp) -> list[str]:
    return [str(path.relative_to(app.scratch)) for path in app.leftovers()]


@pytest.mark.parametrize(
    "route", ["upload", "upload/", "upload?upload_id=1", "component_server", "process_recording"]
)
def test_an_upload_is_refused_and_nothing_is_stored(open_app: OpenApp, route: str) -> None:
    body = FILE + b"A" * 3_000_000 + END
    answer = open_app.client.post(f"gradio_api/{route}", content=body, headers=MULTIPART)
    assert answer.status_code == 404
    assert answer.json()["detail"].endswith("neither the page nor an endpoint needs it.")
    assert stored(open_app) == []


@pytest.mark.parametrize("route", ["login", "gradio_api/queue/join", "gradio_api/cancel"])
def test_a_file_in_a_form_for_another_route_is_not_stored_either(
    open_app: OpenApp, route: str
) -> None:
    for size in (1000, 3_000_000):
        body = FILE + b"A" * size + END
        answer = open_app.client.post(route, content=body, headers=MULTIPART)
        assert answer.status_code in (400, 413, 422), answer.text
        assert stored(open_app) == []


@pytest.mark.parametrize(
    "route",
    [
        "gradio_api/file=http://127.0.0.1:9/secret",
        "gradio_api/file=HTTPS://127.0.0.1:9/secret",
        "gradio_api/file/http://127.0.0.1:9/secret",
        "gradio_api/proxy=http://127.0.0.1:9/secret",
        "gradio_api/stream/a/b/1/playlist-file",
        "gradio_api/upload_progress?upload_id=1",
        "gradio_api/deep_link?session_hash=1",
        "gradio_api/custom_component/a/client/b/c",
        "gradio_api/vibe-code",
        "gradio_api/run-history/buckets",
        "gradio_api/dev/reload",
        "gradio_api/mcp/sse",
        "monitoring",
        "docs",
    ],
)
def test_a_route_that_nobody_needs_is_closed(open_app: OpenApp, route: str) -> None:
    answer = open_app.client.get(route)
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("The route '/")
    assert stored(open_app) == []


@pytest.mark.parametrize(
    "route",
    ["", "config", "gradio_api/info", "gradio_api/openapi.json", "theme.css", "gradio_api/app_id"],
)
def test_what_the_page_and_programs_need_is_open(open_app: OpenApp, route: str) -> None:
    assert open_app.client.get(route).status_code == 200


def test_a_request_without_end_is_cut_off(open_app: OpenApp) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        yield b'{"data": ["'
        while sent < 1000 * MAX_BODY:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    try:
        answer = open_app.client.post("gradio_api/call/chat", content=pieces())
    except OSError:
        pass
    else:
        assert answer.status_code == 413
        assert (
            answer.json()["detail"] == "The request is too large; expected at most 1,048,576 bytes."
        )
    assert sent < 200 * MAX_BODY


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("run_status", [LARGEST + 1], "run_id is 9223372036854775808; expected a whole number"),
        ("run_status", [[1]], "run_id is [1]; expected a whole number"),
        ("run_status", [LARGEST], "There is no run 9223372036854775807."),
        ("run_status", [], "run_id is missing; expected a whole number"),
        ("run_status", [1, 2], "Too many values, 2; expected run_id."),
        ("cancel_run", [LARGEST + 1], "run_id is 9223372036854775808; expected a whole number"),
        ("resume_run", [float("nan")], "run_id is nan; expected a whole number"),
        ("list_runs", [ADDRESS], "Too many values, 1; expected none."),
        ("chat", [1, "FP16", None], "message is None; expected text"),
        ("chat", [1, "FP16", ADDRESS], "message is {'meta': {'_type': 'gradio.FileData'}"),
        ("chat", [1, "FP16", "hi", None], "system is None; expected text"),
        ("chat", [1, "FP16", "hi", "", 1.5], "max_tokens is 1.5; expected a whole number"),
        ("chat", [1, "FP16", "hi", "", 2, 1, 1, 1.5], "seed is 1.5; expected a whole number"),
        ("run_checks", [1, "builtin", "", -1], "amount is -1; expected a whole number from 0"),
        ("run_checks", [1, "builtin", "", 1, 10**9], "max_tokens is 1000000000; expected"),
        ("run_checks", [1, "ifeval", "\0"], "cannot be read"),
        ("start_run", ["bundled", "upq", "smoke", "[" * 9000], "beyond reason"),
        ("start_run", ["bundled", "upq", "smoke", '{"\ud83d": 1}'], "settings_json holds half"),
        ("start_run", ["bundled", "upq", "smoke", '{"\\ud83d": 1}'], r"Unknown setting \ud83d."),
    ],
)
def test_a_mistake_in_a_call_is_one_sentence(
    open_app: OpenApp, name: str, values: list[Any], sentence: str
) -> None:
    refusal = open_app.call(name, {"data": values}).refusal
    assert refusal is not None
    assert sentence in refusal
    assert stored(open_app) == []


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("run_status", {"id": 1, "run_id": 1}, "There is no argument 'id'; expected run_id."),
        ("run_status", {}, "run_id is missing; expected a whole number"),
        ("run_status", [1], "The body is no JSON object; expected the arguments by name."),
        ("chat", {"run_id": 0, "precision": "FP16", "message": " "}, "The message is empty. Write"),
        ("erase_all", {}, "There is no endpoint 'erase_all'; expected start_run, run_status,"),
    ],
)
def test_a_mistake_in_a_call_by_name_is_one_sentence(
    open_app: OpenApp, name: str, arguments: Any, sentence: str
) -> None:
    refusal = open_app.call(name, arguments, by_name=True).refusal
    assert refusal is not None
    assert sentence in refusal


def test_a_call_by_name_takes_the_defaults_of_what_is_missing(open_app: OpenApp) -> None:
    (status,) = open_app.call("run_status", {"run_id": open_app.run_id}, by_name=True).results
    assert (status["id"], status["state"]) == (open_app.run_id, "done")
    asked = {"run_id": open_app.run_id, "precision": "INT4", "message": "hi", "max_tokens": 3}
    assert open_app.call("chat", asked, by_name=True).results[-1]["done"]
    (queued,) = open_app.call("run_checks", {"run_id": open_app.run_id}, by_name=True).results
    config = open_app.store.run(queued["run_id"]).config
    assert (config["limit"], config["max_tokens"], config["seed"]) == (60, 256, 0)
    assert config["precisions"] == ["FP16", "INT4", "INT2"]


def test_only_the_endpoints_can_be_called_by_a_name(open_app: OpenApp) -> None:
    events = open_app.client.get("config").json()["dependencies"]
    private = {event["api_name"] for event in events if event["api_visibility"] == "private"}
    assert private
    for name in private:
        assert "There is no endpoint" in str(open_app.call(name, {"data": []}).refusal)


def test_a_call_cannot_pass_the_queue(open_app: OpenApp) -> None:
    assert open_app.post("run/list_runs", {"data": []}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"data": [], "fn_index": 10**6, "session_hash": "a"},
        {"data": float("nan")},
        {"data": "\ud83d"},
        {"data": [], "session_hash": "a", "trigger_id": 2**70},
    ],
)
def test_a_body_that_gradio_cannot_read_is_no_crash(open_app: OpenApp, body: Any) -> None:
    answer = open_app.post("queue/join", body)
    assert answer.status_code in (400, 422)
    assert "Traceback" not in answer.text


def test_an_event_of_the_page_takes_no_objects_and_tells_nothing_of_python(
    open_app: OpenApp,
) -> None:
    events = open_app.client.get("config").json()["dependencies"]
    private = [event for event in events if event["api_visibility"] == "private"]
    assert len(private) > 20
    refused = 0
    for event in private:
        for value in (ADDRESS, [ADDRESS], 2**70):
            body = {"data": [value] * len(event["inputs"]), "fn_index": event["id"]}
            answer = open_app.post("queue/join", body | {"session_hash": f"page{event['id']}"})
            if answer.status_code != 200:
                continue
            for output in _outcomes(open_app, f"page{event['id']}"):
                words = str(output.get("error") or "")
                assert "\n" not in words
                if event["inputs"] and value != 2**70:
                    assert words.startswith("The page sends other values; expected ")
                    refused += 1
    assert refused > len(private), "most events were reached"
    assert stored(open_app) == []


def _outcomes(app: OpenApp, session: str) -> Iterator[dict[str, Any]]:
    """Yield the output of every event of a session that is over."""
    route = f"gradio_api/queue/data?session_hash={session}"
    with app.client.stream("GET", route) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                yield message["output"]


@pytest.mark.parametrize(
    ("error", "is_quiet"),
    [
        (HTTPException(404), True),
        (HTTPException(500), False),
        (KeyError("abc"), True),
        (KeyError("another"), False),
    ],
    ids=repr,
)
def test_a_stream_to_a_page_that_is_gone_ends_without_an_error(
    error: Exception, is_quiet: bool
) -> None:
    sent: list[Any] = []

    async def streaming(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if isinstance(error, KeyError):
            raise error
        raise RuntimeError("response already started") from error

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    path, query = "/gradio_api/queue/data", b"session_hash=abc"
    scope: Any = {"type": "http", "method": "GET", "path": path, "query_string": query}
    with nullcontext() if is_quiet else pytest.raises((RuntimeError, KeyError)):
        asyncio.run(Gate(streaming)(scope, receive, send))
    ended = {"type": "http.response.body", "body": b"", "more_body": False}
    assert (sent[-1] == ended) is is_quiet


def test_the_page_is_sent_compressed_to_those_who_can_read_it(open_app: OpenApp) -> None:
    for path in ("", "config"):
        small = open_app.client.get(path, headers={"accept-encoding": "gzip"})
        plain = open_app.client.get(path, headers={"accept-encoding": "identity"})
        assert small.headers["content-encoding"] == "gzip"
        assert int(small.headers["content-length"]) < len(plain.content) / 4
        assert "content-encoding" not in plain.headers
