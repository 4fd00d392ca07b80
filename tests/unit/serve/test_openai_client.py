"""OpenAI's own client talks to the server as to OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.served_models import serving
from tests.unit.jobs.test_served import stored_run
from upq.models import load
from upq.store import open_store


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[openai.OpenAI]:
    store = open_store(tmp_path_factory.mktemp("openai"))
    run_id = stored_run(store, load(str(tiny_model_dir)), tiny_model_dir)
    with (
        serving(store, run_id, ("INT4", "INT2"), key="secret") as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as client,
    ):
        yield client
    store.close()


def test_it_lists_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["upq-1-int4", "upq-1-int2"]
    assert client.models.retrieve("upq-1-int2").owned_by == "upq-studio"


def test_it_reads_a_whole_answer_and_the_same_as_a_stream(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(
        model="upq-1-int2",
        messages=messages,  # type: ignore[arg-type]
        max_completion_tokens=16,
    )
    stream = client.chat.completions.create(
        model="upq-1-int2",
        messages=messages,  # type: ignore[arg-type]
        max_completion_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage == whole.usage
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_a_stream_that_is_closed_makes_room_for_the_next_question(client: openai.OpenAI) -> None:
    for _ in range(3):
        stream = client.chat.completions.create(
            model="upq-1-int4",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=400,
            stream=True,
        )
        assert next(iter(stream)).choices
        stream.close()


def test_its_errors_are_those_of_openai(client: openai.OpenAI) -> None:
    def ask(model: str, **more: object) -> None:
        messages = [{"role": "user", "content": "hello"}]
        client.chat.completions.create(model=model, messages=messages, **more)  # type: ignore[call-overload]

    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-4'"):
        ask("gpt-4")
    with pytest.raises(openai.BadRequestError, match="n is 2, which is not served") as caught:
        ask("upq-1-int2", n=2)
    assert caught.value.param == "n"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
