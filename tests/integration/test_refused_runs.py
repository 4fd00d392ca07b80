"""A run that the GPU has no memory for is refused before it is queued, by the form, the command line and the API."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from tests.support.apps import app_of
from tests.support.large_models import folder_of
from ui import api
from ui.quantize import form as run_form
from ui.requests import StartRun
from upq.__main__ import main
from upq.errors import UserError
from upq.quantize import ready
from upq.store import Store, open_store


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the config of an 8B model."""
    return str(folder_of("Llama-3.1-8B", tmp_path_factory.mktemp("models")))


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU has 24 GB."""
    monkeypatch.setattr(ready, "gpu_bytes", lambda _: 24 * 10**9)


@pytest.mark.usefixtures("small_gpu")
def test_the_command_line_refuses(
    large: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--data-dir", str(tmp_path), "run", "--model", large, "--preset", "standard"]
    assert main(line) == 2
    assert "the GPU has 24.0 GB; set int" in capsys.readouterr().err
    assert not (tmp_path / "upq.db").exists() or open_store(tmp_path).runs() == []


@pytest.mark.usefixtures("small_gpu")
def test_the_form_refuses_and_shows_why_before_start(large: str, store: Store) -> None:
    with gr.Blocks():
        form = run_form.build()
    values = [component.value for component in form.inputs]
    shown = dict(zip(form.named, values, strict=True))
    shown |= {"model_kind": "path", "model_text": large, "int2.distill.batch_tokens": 8192}
    desk = app_of(store)
    assert "the GPU has 24.0 GB" in str(run_form.estimate_html(desk, form, list(shown.values())))
    with pytest.raises(UserError) as caught:
        run_form.start(desk, form, list(shown.values()))
    assert caught.value.code == "gpu_too_small"
    assert store.runs() == []


@pytest.mark.usefixtures("small_gpu")
def test_the_api_refuses(large: str, store: Store) -> None:
    desk = app_of(store)
    asked = StartRun(model=large, method="rotated_upq", preset="standard")
    with pytest.raises(UserError, match=r"the GPU has 24\.0 GB"):
        api._start_run(desk, asked)
    assert store.runs() == []
