"""What programs ask is read as they mean it, and what is not served is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from upq.serve.question import USUAL_TOKENS, Question, read
from upq.serve.refusal import Refusal

CASES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "support" / "serve_requests.json").read_text()
)
PLAIN = {"model": "upq-1-int2", "messages": [{"role": "user", "content": "hello"}]}


def asked(**changes: Any) -> Question:
    return read(json.dumps(PLAIN | changes).encode())


def refused(**changes: Any) -> dict[str, Any]:
    with pytest.raises(Refusal) as caught:
        asked(**changes)
    assert caught.value.status == 400
    return caught.value.body["error"]


@pytest.mark.parametrize("name", CASES)
def test_the_requests_of_known_programs_are_read(name: str) -> None:
    question = read(json.dumps(CASES[name]).encode())
    assert question.model == "MODEL"
    assert all(message["content"] for message in question.conversation)
    assert {message["role"] for message in question.conversation} <= {"system", "user"}
    assert question.decoding.max_new_tokens == (8192 if "as its page" in name else 12)


def test_parts_of_text_are_one_text_and_a_developer_speaks_as_the_system() -> None:
    question = read(json.dumps(CASES["text in parts"]).encode())
    assert question.conversation == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]


def test_decoding_is_what_was_asked_and_greedy_where_nothing_was() -> None:
    decoding = asked(temperature=1, top_p=0.5, seed=7, max_tokens=9).decoding
    settings = (decoding.temperature, decoding.top_p, decoding.seed, decoding.max_new_tokens)
    assert settings == (1.0, 0.5, 7, 9)
    assert asked().decoding.temperature == 0
    assert asked().decoding.max_new_tokens == USUAL_TOKENS
    assert asked(max_tokens=5, max_completion_tokens=6).decoding.max_new_tokens == 6
    assert asked(max_tokens=100_000).decoding.max_new_tokens == 8192
    assert asked(top_p=0).decoding.top_p == 0.01


def test_without_a_seed_each_draw_is_another() -> None:
    assert len({asked().decoding.seed for _ in range(5)}) == 5
    assert len({asked(seed=-1).decoding.seed for _ in range(5)}) == 5
    assert asked(seed=2**63 + 5).decoding.seed == 5


@pytest.mark.parametrize(
    "unserved",
    [
        {"tools": [{"type": "function", "function": {"name": "search"}}]},
        {"functions": [{"name": "search"}]},
        {"tool_choice": "required"},
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"logit_bias": {"5": 1}},
        {"modalities": ["text", "audio"]},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_would_change_the_answer_and_is_not_served_is_refused(
    unserved: dict[str, Any],
) -> None:
    (name,) = unserved
    error = refused(**unserved)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert error["message"].startswith(f"{name} is ")
    assert "not served" in error["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        ({"model": None}, "model"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_a_mistake_is_named_in_one_sentence(changes: dict[str, Any], param: str) -> None:
    error = refused(**changes)
    assert error["param"] == param
    assert error["message"].startswith(f"{param} is ")
    assert "\n" not in error["message"]


def test_a_picture_is_refused_in_words() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = refused(messages=[{"role": "user", "content": [picture]}])
    assert error["message"] == (
        "messages.0.content is neither a text nor a list of text parts; images, audio and calls are not read."
    )


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal, match="no JSON object"):
        read(body)
