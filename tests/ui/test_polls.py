"""What the pages ask of the server again and again, and what they are spared."""

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
from ui.api import ENDPOINTS
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


NAMES = ("seen", *header.MOVING, "status")
BLANK = dict.fromkeys(NAMES, "")


def poll(app: App, tab: str, known: dict[str, Any]) -> dict[str, Any]:
    """What a page knows that knew this, and looks at a tab, once it has asked."""
    answer = header._poll(app, tab, *[known[name] for name in NAMES[:-1]])
    told = zip(NAMES, answer, strict=True)
    return {name: known[name] if new == NOTHING else new for name, new in told}


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in NAMES if before[name] != after[name]} - {"seen"}


def test_a_poll_that_finds_nothing_new_reads_one_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    lab.done(preset("quick"))
    app = app_of(lab)
    known = poll(app, "results", BLANK)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing else is read")

    for name in ("runs", "run", "live_run", "artifacts"):
        monkeypatch.setattr(lab.store, name, forbidden)
    answer = header._poll(app, "results", *[known[name] for name in NAMES[:-1]])
    assert answer == [NOTHING] * len(NAMES)


def test_a_page_hears_only_of_what_moved(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    _, lease = lab.begun(RunConfig())
    lease.stage("int2", 200)
    quantize, chat = (poll(app, tab, BLANK) for tab in ("quantize", ""))
    lease.progress(1, 99.0, None, "", 1, None)  # half a percent
    quantize, before = poll(app, "quantize", quantize), quantize
    assert moved(before, quantize) == {"revision"}
    chat, before = poll(app, "", chat), chat
    assert moved(before, chat) == set()
    lease.progress(50, 99.0, None, "", 1, None)
    assert moved(quantize, poll(app, "quantize", quantize)) == {"revision", "status"}
    chat, before = poll(app, "", chat), chat
    assert moved(before, chat) == {"progress", "status"}
    lease.finish("done")
    heard = {"catalog", "chat catalog", "progress", "status"}
    assert moved(chat, poll(app, "", chat)) == heard, "the catalog knows the states"


def test_a_tab_hears_what_it_missed_when_it_is_opened(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    known = poll(app, "chat", BLANK)
    lab.done(RunConfig())
    known = poll(app, "chat", known)
    assert known["chat catalog"] == known["catalog"] != ""
    assert {known[f"{tab} catalog"] for tab in header.TABS if tab != "chat"} == {""}
    for tab, own in [
        ("results", {"results catalog", "votes"}),
        ("quantize", {"quantize catalog", "revision"}),
        ("checks", {"checks catalog", "checks"}),
        ("export", {"export catalog"}),
    ]:
        known, before = poll(app, tab, known), known
        assert moved(before, known) == own


def test_every_tab_of_the_page_has_a_catalog_and_a_listener(tmp_path: Path) -> None:
    page = ui.build(app_of(Lab(tmp_path)))
    tabs = [block.id for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == list(header.TABS)


def test_no_event_writes_its_progress_into_what_it_fills(tmp_path: Path) -> None:
    """Gradio's page would do so for all that any event has ever filled, at each step of each event."""
    events = ui.build(app_of(Lab(tmp_path))).fns.values()
    assert len(events) > len(ENDPOINTS)
    private = [one for one in events if one.outputs and one.api_visibility == "private"]
    assert [one.name for one in private if one.show_progress_on != []] == []


def test_a_name_that_is_given_to_a_run_reaches_the_lists(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    run_id = lab.done(RunConfig())
    known = poll(app, "quantize", BLANK)
    for labels in (Labels(name="best"), Labels(note="why"), Labels(starred=True)):
        lab.store.label(run_id, labels)
        assert {"catalog", "quantize catalog"} <= moved(
            known, known := poll(app, "quantize", known)
        ), labels


def test_what_keeps_the_supervisor_from_its_work_is_said_on_every_page(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    known = poll(app, "", BLANK)
    app.supervisor.trouble = "The database could not be written: disk full. Free <some> space."  # type: ignore[misc]
    after = poll(app, "", known)
    assert "disk full. Free &lt;some&gt; space." in after["status"]


def test_a_page_rests_only_where_nothing_is_at_work_or_waits(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)

    def rests() -> bool:
        return " data-rests" in poll(app, "", BLANK)["status"]

    assert rests()
    worker: Any = app.supervisor
    worker.is_ready = False
    assert not rests(), "a worker that starts"
    worker.is_ready, worker.trouble = True, "The disk is full."
    assert not rests(), "trouble that may be over at any moment"
    worker.trouble = ""
    unpacking: Any = SimpleNamespace(poll=lambda: None)
    app.unpacking = unpacking
    assert not rests(), "models that are being unpacked"
    app.unpacking = None
    run_id = lab.store.enqueue(RunConfig())
    assert not rests(), "a run that waits"
    lab.store.request_cancel(run_id)
    assert rests()
    _, lease = lab.begun(RunConfig())
    assert not rests(), "a run at work"
    lease.finish("done")
    assert rests()


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
