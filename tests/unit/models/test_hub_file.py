"""A look at the hub ends within seconds, whatever the hub does; against a stand-in of the hub and without any."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from huggingface_hub import close_session, constants

from tests.support.apps import app_of
from tests.support.hub import Hub, running
from ui.quantize import form as run_form
from ui.quantize.lookups import Lookups
from upq.errors import UserError
from upq.models import hub as models_hub
from upq.models import inspect
from upq.store import Store

#: What a test waits for the hub instead of five seconds.
SHORT_S = 0.5


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A stand-in that has no models yet, and an empty cache of the client."""
    with running("me", "hf_secret") as stand_in:
        at(stand_in.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(models_hub, "HUB_S", SHORT_S)
        monkeypatch.setattr(models_hub, "_asked", {})
        monkeypatch.setattr(time, "sleep", stand_in.ends.wait)  # the client's, between two tries
        yield stand_in
        stand_in.ends.set()
        for thread in threading.enumerate():
            if thread.name.startswith("hub "):
                thread.join(30)
        close_session()


def at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client look for files at another address."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def seconds_until_refused(repo: str) -> tuple[float, UserError]:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        inspect(repo, None, 32, 16)
    return time.monotonic() - started, caught.value


def test_a_hub_that_does_not_answer_is_a_sentence_within_the_time(
    hub: Hub, tiny_model_dir: Path
) -> None:
    hub.models["me/slow"] = {"config.json": (tiny_model_dir / "config.json").read_bytes()}
    hub.delays["/me/slow"] = 60
    waited, error = seconds_until_refused("me/slow")
    assert SHORT_S <= waited < 5
    assert error.code == "offline"
    assert "did not answer within" in error.message


def test_without_a_connection_nobody_waits_for_the_tries_of_the_client(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    waited, error = seconds_until_refused("me/nowhere")
    assert waited < 5
    assert error.code == "offline"


def test_a_model_that_is_not_there_is_said_at_once(hub: Hub) -> None:
    waited, error = seconds_until_refused("me/none")
    assert waited < SHORT_S + 5
    assert error.message.startswith("The config.json of me/none could not be read: ")
    assert "did not answer" not in error.message


def test_a_config_that_came_too_late_is_there_for_the_next_who_asks(
    hub: Hub, tiny_model_dir: Path
) -> None:
    hub.models["me/late"] = {"config.json": (tiny_model_dir / "config.json").read_bytes()}
    hub.delays["/me/late"] = SHORT_S
    seconds_until_refused("me/late")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            shape = inspect("me/late", None, 32, 16)
            break
        except UserError:
            time.sleep(0.1)
    assert shape.quantized > 0
    before = len(hub.calls)
    assert inspect("me/late", None, 32, 16) == shape
    assert len(hub.calls) == before, "the hub is asked once"


def test_the_form_says_it_and_starts_nothing(hub: Hub, store: Store) -> None:
    hub.delays["/me/slow"] = 60
    with gr.Blocks():
        form = run_form.build()
    shown: dict[str, Any] = {name: field.value for name, field in form.named.items()}
    shown |= {"model_kind": "hub", "model_text": "me/slow"}
    values, desk = list(shown.values()), app_of(store)
    assert "Looks for me/slow on the hub." in run_form.looking(form, values)
    number = (lookups := Lookups()).begin()
    assert "did not answer" in run_form.estimate_html(desk, form, values)
    assert lookups.is_newest(number)
    with pytest.raises(UserError, match="did not answer"):
        run_form.start(desk, form, values)
    assert store.runs() == []
