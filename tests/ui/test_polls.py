"""What the pages ask of the server once a second, and what they are spared."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

import ui
from tests.ui.lab import Lab
from ui import header
from ui.app_state import App
from ui.shared import KEPT, Shared
from upq.config import RunConfig, preset
from upq.jobs.export_folder import Exports
from upq.store import Labels

NOTHING = gr.skip()


def app_of(lab: Lab) -> Any:
    supervisor: Any = SimpleNamespace(is_ready=True, trouble="")
    models: Any = None
    return App(lab.store, models, supervisor, Path(), Exports(lab.store, Path()))


def poll(app: App, known: list[Any]) -> list[Any]:
    """The answer to a page that knows this, and what it knows then."""
    answer = header._poll(app, *known)
    return [old if new == NOTHING else new for old, new in zip([*known, ""], answer, strict=True)]


def test_a_poll_that_finds_nothing_new_reads_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    lab.done(preset("quick"))
    app = app_of(lab)
    known = poll(app, [""] * 6)[:6]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing else is read")

    for name in ("runs", "run", "live_run", "artifacts"):
        monkeypatch.setattr(lab.store, name, forbidden)
    assert header._poll(app, *known) == [NOTHING] * 7


def test_a_page_hears_only_of_what_moved(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    _, lease = lab.begun(RunConfig())
    lease.stage("int2", 200)
    known = poll(app, [""] * 6)
    lease.progress(1, 99.0, None, "", 1, None)  # half a percent
    after = poll(app, known[:6])
    names = ("seen", "revision", "checks", "progress", "catalog", "votes", "status")
    moved = [name for name, old, new in zip(names, known, after, strict=True) if old != new]
    assert moved == ["seen", "revision"]
    lease.progress(50, 99.0, None, "", 1, None)
    known, after = after, poll(app, after[:6])
    moved = [name for name, old, new in zip(names, known, after, strict=True) if old != new]
    assert moved == ["seen", "revision", "progress", "status"]
    lease.finish("done")
    assert poll(app, after[:6])[4] != after[4], "the catalog knows the states"


def test_a_name_that_is_given_to_a_run_reaches_the_lists(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    run_id = lab.done(RunConfig())
    known = poll(app, [""] * 6)
    for labels in (Labels(name="best"), Labels(note="why"), Labels(starred=True)):
        lab.store.label(run_id, labels)
        known, before = poll(app, known[:6]), known
        assert known[4] != before[4], labels


def test_what_keeps_the_supervisor_from_its_work_is_said_on_every_page(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    known = poll(app, [""] * 6)
    app.supervisor.trouble = "The database could not be written: disk full. Free <some> space."  # type: ignore[misc]
    after = poll(app, known[:6])
    assert "disk full. Free &lt;some&gt; space." in after[6]


def test_twenty_pages_that_ask_at_once_have_it_made_once() -> None:
    shared, made, start = Shared(), [], threading.Barrier(20)

    def make() -> str:
        made.append(f"panel {len(made)}")
        return made[-1]

    def ask(_: int) -> str:
        start.wait()
        return shared.get("panel", make)

    with ThreadPoolExecutor(20) as pool:
        found = set(pool.map(ask, range(20)))
    assert found == set(made)
    assert len(made) == 1


def test_what_failed_is_made_again_and_old_values_are_forgotten() -> None:
    shared = Shared()
    with pytest.raises(ZeroDivisionError):
        shared.get("key", lambda: 1 // 0)
    assert shared.get("key", lambda: 2) == 2
    for number in range(KEPT):
        shared.get(number, lambda: 0)
    assert shared.get("key", lambda: 3) == 3


def test_gradio_makes_no_statistics_of_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", raising=False)
    monkeypatch.delenv("GRADIO_ANALYTICS_MAX_EVENTS", raising=False)
    ui.without_analytics()
    with gr.Blocks(analytics_enabled=False) as demo:
        pass
    queue = demo.queue(max_size=ui.MAX_QUEUED)._queue
    queue.events_recorded = 10_000
    assert queue.compute_analytics_summary([{"function": "x"}]) == {"functions": {}}
    assert queue.ANALYTICS_MAX_EVENTS == 1


def test_what_one_page_does_with_a_value_no_other_page_sees() -> None:
    """Gradio takes updates apart when it sends them: the second page would get a download button without a file."""
    shared = Shared()
    first, second = (shared.get("results", lambda: [gr.update(value="file.csv")]) for _ in "12")
    first[0].pop("value")
    assert second[0]["value"] == shared.get("results", list)[0]["value"] == "file.csv"
