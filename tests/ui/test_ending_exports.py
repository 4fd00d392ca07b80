"""The app ends while an export is being made: nothing half-made is there, and the next start clears up."""

from __future__ import annotations

import json
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import make_tokenizer
from tests.support.exported_runs import exportable_run
from tests.ui.studio import STOP_S, start_app, stop_app
from upq.files import STAGING_PREFIX, verify_dir
from upq.jobs.export_folder import Wanted
from upq.models import load
from upq.store import exports_dir, open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WANTED = Wanted(1, "INT4", "safetensors")
WAIT_S = 60
#: The export is looked at so often, seconds; it takes some hundred times as long.
LOOK_S = 0.003


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a run of a model of 30 million weights: its export of 60 MB takes about a second."""
    folder, source = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    with closing(open_store(folder)) as store:
        assert exportable_run(store, load(str(source)), source, ("INT4",)) == WANTED.run_id
    return folder


def ask(url: str) -> str:
    """Ask for the export, and return the address of the answer, which is there when it has been made."""
    call = f"{url}gradio_api/call/make_export"
    values: list[Any] = [WANTED.run_id, WANTED.precision, WANTED.format]
    answer = httpx.post(call, json={"data": values}, timeout=WAIT_S)
    return f"{call}/{answer.raise_for_status().json()['event_id']}"


def half_made(folder: Path) -> list[Path]:
    """Files of exports that are being written."""
    found = exports_dir(folder).glob(f"{STAGING_PREFIX}*/*.safetensors*")
    return [path for path in found if path.stat().st_size]


def wait_until_half_made(folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if half_made(folder):
                return
        except FileNotFoundError:
            pass  # safetensors renamed it meanwhile
        time.sleep(LOOK_S)
    raise AssertionError("no export was begun")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_an_app_that_ends_during_an_export_leaves_nothing_half_made(
    ending: signal.Signals, prepared: Path
) -> None:
    made = exports_dir(prepared) / WANTED.name
    url, process = start_app(prepared)
    try:
        ask(url)
        wait_until_half_made(prepared)
        process.send_signal(signal.SIGSTOP)
        assert half_made(prepared), "it is caught in the middle"
        assert not made.exists()
        process.send_signal(ending)
        process.send_signal(signal.SIGCONT)
        code = process.wait(STOP_S)
    finally:
        process.kill()
    assert not made.exists()
    if ending == signal.SIGTERM:
        assert code == 0
        assert not half_made(prepared), "an app that is asked to end clears up itself"
    else:
        assert code == -signal.SIGKILL
        assert half_made(prepared), "nobody can clear up after a kill"

    url, process = start_app(prepared)
    try:
        assert list(exports_dir(prepared).iterdir()) == []
        answer = httpx.get(ask(url), timeout=WAIT_S).text
        assert "event: complete" in answer
        [told] = json.loads(answer.split("data: ")[-1])
        assert told["folder"] == str(made)
        assert verify_dir(made) == []
    finally:
        assert stop_app(process) == 0
    with closing(open_store(prepared)) as store:
        assert store.doctor() == []
    for path in sorted(exports_dir(prepared).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
