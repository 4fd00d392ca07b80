"""What a page shows while the shipped models are unpacked, and where it lands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gradio as gr
import pytest

from tests.unit.jobs.test_served import stored_run
from ui import App, landing
from ui.chat import columns, render_head
from ui.chat.tab import _show
from ui.html import PRECISIONS
from upq.models import LoadedModel


class Unpacking(subprocess.Popen[bytes]):
    """A process that ends when it is told to."""

    def __init__(self, code: int) -> None:
        super().__init__(
            [sys.executable, "-c", f"input(); raise SystemExit({code})"], stdin=subprocess.PIPE
        )

    def end(self) -> None:
        self.communicate(b"\n")


@pytest.mark.parametrize(("code", "sentence"), [(0, "No INT4 yet."), (1, "could not be unpacked")])
def test_columns_say_that_the_shipped_models_are_being_unpacked(
    app: App, code: int, sentence: str
) -> None:
    app.unpacking = Unpacking(code)
    try:
        columns = _show(app, None, None).columns
        assert "Ask something." in columns["FP16"]["past"]
        assert (
            "are being unpacked: half a minute, longer on a busy machine" in columns["INT2"]["past"]
        )
        told = [name for name, parts in columns.items() if 'role="status"' in parts["past"]]
        assert told == ["INT4"], "a screen reader says it once"
        assert "not there yet" in columns["INT2"]["head"]
    finally:
        app.unpacking.end()
    assert sentence in _show(app, None, None).columns["INT4"]["past"]


def test_a_page_lands_on_chat_where_there_is_a_packed_model_or_one_is_being_unpacked(
    app: App, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    assert landing(app) == "quantize"
    app.unpacking = Unpacking(1)
    try:
        assert landing(app) == "chat"
    finally:
        app.unpacking.end()
    assert landing(app) == "quantize", "it failed"
    stored_run(app.store, tiny, tiny_model_dir)
    assert landing(app) == "chat"


def test_heads_promise_nothing_before_the_page_has_asked_which_models_there_are() -> None:
    with gr.Blocks():
        panes = columns.build()
    for precision in PRECISIONS:
        line = panes[precision].head.value
        assert render_head.NOT_KNOWN in line
        assert render_head.NOT_LOADED not in line
        assert render_head.NOT_THERE not in line
