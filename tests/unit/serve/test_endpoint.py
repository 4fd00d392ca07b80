"""The endpoint over HTTP: whole answers and streams, one after the other, and each mistake in OpenAI's shape."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.served_models import serving
from tests.unit.jobs.test_served import stored_run
from upq.decode import Decoding, Piece
from upq.jobs import Models, Served
from upq.models import load
from upq.serve.endpoint import MAX_BODY
from upq.store import Store, open_store

CASES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "support" / "serve_requests.json").read_text()
)
HANG_S = 60
LONG = 400


@dataclass
class Lab:
    """A store with a finished run of the tiny model, and its models."""

    store: Store
    run_id: int
    models: Models


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Lab]:
    store = open_store(tmp_path_factory.mktemp("serve"))
    run_id = stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    yield Lab(store, run_id, Models(store))
    store.close()


@pytest.fixture(scope="module")
def client(lab: Lab) -> Iterator[httpx.Client]:
    with (
        serving(lab.store, lab.run_id, models=lab.models) as address,
        httpx.Client(base_url=address, timeout=HANG_S) as client,
    ):
        yield client


def question(lab: Lab, **changes: Any) -> dict[str, Any]:
    asked = {"model": f"upq-{lab.run_id}-int2", "messages": [{"role": "user", "content": "hello"}]}
    return asked | {"max_tokens": 12} | changes


def ask(client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
    return client.post("/v1/chat/completions", json=body)


def streamed(client: httpx.Client, body: dict[str, Any]) -> list[Any]:
    """The events of a stream; the last line is [DONE]."""
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "") for event in events for choice in event["choices"]
    )


def test_the_models_of_the_run_are_listed_and_described(client: httpx.Client, lab: Lab) -> None:
    listed = client.get("/v1/models").json()
    names = [f"upq-{lab.run_id}-{name}" for name in ("fp16", "int4", "int2")]
    assert [model["id"] for model in listed["data"]] == names
    assert client.get(f"/v1/models/{names[2]}").json() == listed["data"][2]
    assert client.get("/health").json() == {"status": "ok"}


def test_a_whole_answer_and_a_stream_say_the_same_as_the_model(
    client: httpx.Client, lab: Lab
) -> None:
    whole = ask(client, question(lab)).json()
    served = lab.models.get(lab.run_id, "INT2", "")
    *_, last = served.answer([{"role": "user", "content": "hello"}], Decoding(max_new_tokens=12))
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": last.text, "refusal": None}
    assert choice["finish_reason"] == last.finish
    assert whole["usage"] == {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.tokens,
        "total_tokens": last.prompt_tokens + last.tokens,
    }
    events = streamed(client, question(lab, stream_options={"include_usage": True}))
    assert text_of(events) == last.text
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-2]["choices"][0]["finish_reason"] == last.finish
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
    assert len({event["id"] for event in events}) == 1
    assert events[0]["id"] != whole["id"]


@pytest.mark.parametrize("name", CASES)
def test_the_requests_of_known_programs_are_answered(
    client: httpx.Client, lab: Lab, name: str
) -> None:
    body = CASES[name] | {"model": f"upq-{lab.run_id}-int4"}
    if body.get("stream"):
        assert streamed(client, body)[0]["object"] == "chat.completion.chunk"
    else:
        answer = ask(client, body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")


def test_equal_seeds_draw_equal_answers(client: httpx.Client, lab: Lab) -> None:
    def drawn(seed: int) -> str:
        body = question(lab, temperature=1.5, seed=seed)
        return ask(client, body).json()["choices"][0]["message"]["content"]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_answer_ends_before_a_stop_string(client: httpx.Client, lab: Lab) -> None:
    full = ask(client, question(lab)).json()["choices"][0]["message"]["content"]
    stop = full[3:5]
    expected = full[: full.index(stop)]
    cut = ask(client, question(lab, stop=stop)).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (expected, "stop")
    assert text_of(streamed(client, question(lab, stop=[stop]))) == expected


def test_a_model_that_is_not_served_is_named_with_those_that_are(
    client: httpx.Client, lab: Lab
) -> None:
    answer = ask(client, question(lab, model="gpt-4"))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"].startswith(f"There is no model 'gpt-4'; expected upq-{lab.run_id}-fp16")


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_is_too_long_is_a_mistake_of_the_request(
    client: httpx.Client, lab: Lab, stream: bool
) -> None:
    long = [{"role": "user", "content": "x" * 3000}]
    answer = ask(client, question(lab, messages=long, stream=stream))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", content=b"x" * (MAX_BODY + 1))
    assert answer.status_code == 413
    assert "expected at most 1,048,576 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/completions", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/", 404),
    ],
)
def test_a_route_that_is_not_served_says_which_is(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert "expected POST /v1/chat/completions" in answer.json()["error"]["message"]


def test_the_key_is_asked_for_everywhere_but_at_the_health(lab: Lab) -> None:
    with serving(lab.store, lab.run_id, models=lab.models, key="secret") as address:
        for key in (None, "wrong", "secret2"):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{address}/health").status_code == 200
        right = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{address}/v1/models", headers=right).status_code == 200


def test_a_web_page_that_was_not_named_may_not_ask(client: httpx.Client, lab: Lab) -> None:
    page = {"Origin": "http://evil.example"}
    assert client.get("/v1/models", headers=page).status_code == 403
    with serving(lab.store, lab.run_id, models=lab.models, origin="http://a.example") as address:
        assert httpx.get(f"{address}/v1/models", headers=page).status_code == 403
        named = {"Origin": "http://a.example"}
        assert httpx.get(f"{address}/v1/models", headers=named).status_code == 200


class Slow(Models):
    """Models whose answers go on until they are stopped; it counts the open ones."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.open = 0
        self.most_open = 0
        self.ended = 0

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        served = self._models.get(run_id, precision, source)
        return _SlowServed(**vars(served), owner=self)


@dataclass(frozen=True)
class _SlowServed(Served):
    owner: Any = None

    def answer(
        self,
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        self.owner.open += 1
        self.owner.most_open = max(self.owner.most_open, self.owner.open)
        try:
            for piece in super().answer(messages, replace(decoding, max_new_tokens=1)):
                for _ in range(LONG):
                    yield replace(piece, done=False, finish="")
                    time.sleep(0.02)
        finally:
            self.owner.open -= 1
            self.owner.ended += 1


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_leaves_stops_the_answer_and_those_who_wait_have_their_turn(lab: Lab) -> None:
    slow = Slow(lab.models)
    with serving(lab.store, lab.run_id, models=slow, places=1) as address:
        route = f"{address}/v1/chat/completions"
        first, second = httpx.Client(timeout=HANG_S), httpx.Client(timeout=HANG_S)
        with first.stream("POST", route, json=question(lab, stream=True)) as answer:
            lines = answer.iter_lines()  # whose end would be that of the answer
            assert next(lines).startswith("data: ")
            outcome: list[int] = []

            def wait_in_row() -> None:
                with second.stream("POST", route, json=question(lab, stream=True)) as waited:
                    outcome.append(waited.status_code)

            waiting = threading.Thread(target=wait_in_row)
            waiting.start()
            time.sleep(0.3)  # it is in the row now
            refused = httpx.post(route, json=question(lab))
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert refused.json()["error"]["code"] == "queue_full"
            assert outcome == []
        waiting.join(HANG_S)
        assert outcome == [200]
        until(lambda: slow.ended == 2)
        assert slow.most_open == 1
        first.close()
        second.close()


def test_a_whole_answer_stops_when_nobody_waits_for_it(lab: Lab) -> None:
    slow = Slow(lab.models)
    with serving(lab.store, lab.run_id, models=slow) as address:
        route = f"{address}/v1/chat/completions"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(route, json=question(lab), timeout=0.5)
        until(lambda: slow.ended == 1)
        assert slow.open == 0
