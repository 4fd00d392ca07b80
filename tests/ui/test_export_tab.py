"""The Export tab: its states, its buttons, no markup from outside; and what of an export the app serves."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import gradio as gr
import httpx
import pytest

from tests.support.exported_runs import exportable_run
from tests.support.hub import in_place_of_the_hub
from tests.ui.open_app import Answer, OpenApp
from tests.ui.test_render import HOSTILE, Structure
from ui.app_state import App
from ui.export import made, render, tab
from ui.export.render import Line, Place
from upq.errors import UserError
from upq.export import PackedModel, Progress, Use
from upq.export.dense import Dense
from upq.files import MANIFEST, STAGING_PREFIX
from upq.jobs import exports as opening
from upq.jobs.background import Work
from upq.jobs.export_folder import Exports, Kept, Packing, Sending, Wanted
from upq.models import LoadedModel
from upq.store import Store, open_store

WAIT_S = 60
DENSE = "safetensors"
ROW = {
    "key": "gguf",
    "title": "GGUF",
    "runs_in": "llama.cpp",
    "size_bytes": 88_000_000,
    "bits_per_weight": 4.5,
}
ROW |= {"exactness": "every weight exactly"}  # fmt: skip


def app_of(store: Store, folder: Path) -> Any:
    nobody: Any = None
    return App(store, nobody, nobody, folder, Exports(store, folder / "exports"))


@pytest.fixture
def app(store: Store, tmp_path: Path) -> Any:
    return app_of(store, tmp_path)


@pytest.fixture
def run_id(app: App, tiny: LoadedModel, tiny_model_dir: Path) -> int:
    return exportable_run(app.store, tiny, tiny_model_dir)


def shown(app: App, run_id: int | None, precision: str = "") -> dict[str, Any]:
    """What the tab shows in the end, by the names of its parts."""
    *_, last = tab._show(app, 1.0, run_id, precision)
    return dict(zip((part.name for part in dataclasses.fields(tab.Page)), last, strict=True))


def press(app: App, action: str, key: str, run_id: int, precision: str = "INT4") -> None:
    click: Any = SimpleNamespace(_data={"action": action, "format": key})
    tab._act(app, click, 1.0, run_id, precision)


def asked(open_app: OpenApp, name: str, values: list[Any]) -> Answer:
    return open_app.call(name, {"data": values})


def words(markup: Any) -> str:
    return Structure(str(markup)).words


def test_before_any_run_and_for_fp16_alone_the_tab_says_what_to_do(app: App) -> None:
    assert "Start a run on the Quantize tab" in words(shown(app, None)["run"])
    assert "FP16 alone" in words(shown(app, 0)["run"])
    assert shown(app, 0)["formats"] == ""
    assert list(tab._show(app, 0.0, 1, "")) == [tab.Page.fill()], "nobody looks"


def test_an_artifact_is_opened_once_for_all_pages(
    app: App, run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tab._show(app, 1.0, run_id, "INT2")
    assert "Reading the model" in str(first)
    assert "16-bit safetensors" in str(second)

    def forbidden(*_: object) -> None:
        raise AssertionError("it was opened before")

    monkeypatch.setattr(opening, "model_of", forbidden)
    (again,) = tab._show(app, 2.0, run_id, "INT2")
    assert again[1]["value"] == "INT2"
    assert again[1]["choices"] == ["INT4", "INT2"]


def test_formats_that_cannot_hold_a_model_have_a_sentence_and_no_button(
    app: App, run_id: int
) -> None:
    seen = shown(app, run_id)["formats"]  # INT4 with the zero 7.5
    assert "compressed-tensors W4A16" in words(seen)
    assert "Portable UPQ" in words(seen)
    buttons = [value for name, value in Structure(seen).attributes if name == "data-format"]
    assert {"gguf", "mlx", "packed", DENSE} <= set(buttons)
    assert "compressed-tensors" not in buttons


def test_an_unfinished_run_offers_what_it_has(
    app: App, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    run_id = exportable_run(app.store, tiny, tiny_model_dir, ("INT4",))
    seen = shown(app, run_id, "INT2")
    assert seen["precision"]["choices"] == ["INT4"]
    assert "INT2 was not made: the run is done." in words(seen["run"])
    assert "INT2 is not there yet: the run is running." in words(
        render.about("#1", ["INT2"], "running")
    )


def test_a_damaged_artifact_is_one_sentence(
    tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    store = open_store(tmp_path)
    run_id = exportable_run(store, tiny, tiny_model_dir)
    raw = sqlite3.connect(tmp_path / "upq.db", isolation_level=None)
    raw.execute("UPDATE parts SET data = zeroblob(length(data))")
    raw.close()
    seen = shown(app_of(store, tmp_path), run_id)
    store.close()
    assert "is damaged" in words(seen["formats"])
    assert seen["files"] == seen["published"] == seen["whole"] == ""
    assert not seen["elsewhere"]["visible"]


def test_one_click_makes_files_that_are_shown_until_they_are_deleted(app: App, run_id: int) -> None:
    press(app, "make", DENSE, run_id)
    made(app, Wanted(run_id, "INT4", DENSE))
    seen = shown(app, run_id)
    assert "✓ made" in words(seen["formats"])
    assert not seen["timer"].active
    for part in (f"run-{run_id}-INT4-safetensors", "Read back: every tensor", "vllm serve ."):
        assert part in words(seen["files"])
    command = f"push {run_id} --precision INT4 --format gguf --repo OWNER/NAME"
    assert command in words(seen["published"])
    assert f"pack {run_id} run-{run_id}.upq" in words(seen["whole"])
    press(app, "make", DENSE, run_id)
    assert app.exports.work(Wanted(run_id, "INT4", DENSE)) is None, "they are there"
    press(app, "delete", DENSE, run_id)
    assert words(shown(app, run_id)["files"]) == ""


def test_the_page_follows_an_export_and_can_stop_it(
    app: App, run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, opened = threading.Event(), threading.Event()

    def write(_: Dense, model: PackedModel, folder: Path, progress: Progress) -> None:
        progress(0.5)
        reached.set()
        assert opened.wait(WAIT_S)
        progress(0.6)

    monkeypatch.setattr(Dense, "write", write)
    press(app, "make", DENSE, run_id)
    assert reached.wait(WAIT_S)
    seen = shown(app, run_id)
    assert "30 %" in words(seen["formats"])
    assert ("data-action", "cancel") in Structure(seen["formats"]).attributes
    assert seen["timer"].active
    work = app.exports.work(Wanted(run_id, "INT4", DENSE))
    press(app, "cancel", DENSE, run_id)
    opened.set()
    assert work
    assert work.ended.wait(WAIT_S)
    assert not shown(app, run_id)["timer"].active
    assert words(shown(app, run_id)["files"]) == ""
    with pytest.raises(UserError, match="was stopped"):
        raise_if_stopped(app, Wanted(run_id, "INT4", DENSE), work)


def raise_if_stopped(app: App, wanted: Wanted, work: Work) -> None:
    """Ask as somebody who waited for the work that was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.exports, "make", lambda _: work)
        made(app, wanted)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_model_is_published_from_the_page(
    app: App, run_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tab._first_format(app, 1.0, run_id, "INT2") == "gguf"
    problem, _ = tab._publish(app, 1.0, run_id, "", "tiny", DENSE, True)
    assert "expected OWNER/NAME" in words(problem)
    with in_place_of_the_hub(monkeypatch) as hub:
        problem, timer = tab._publish(app, 1.0, run_id, "INT2", " me/tiny ", DENSE, True)
        (work,) = app.exports.sendings(run_id, "INT2").values()
        assert (problem, timer.active) == ("", True)
        assert work.ended.wait(WAIT_S)
        assert f"16-bit safetensors is at {hub.address}/me/tiny" in words(
            shown(app, run_id, "INT2")["published"]
        )
        tab._publish(app, 1.0, run_id, "INT2", "somebody/tiny", DENSE, True)
        (work,) = app.exports.sendings(run_id, "INT2").values()
        assert work.ended.wait(WAIT_S)
    assert "somebody/tiny refused the upload" in words(shown(app, run_id, "INT2")["published"])


def test_a_page_that_others_reach_does_not_publish(app: App) -> None:
    assert not app.may_publish, "nobody may unless the app says so"
    names = []
    for may_publish in (True, False):
        with gr.Blocks() as page:
            tab._lay_out_elsewhere(dataclasses.replace(app, may_publish=may_publish))
        names.append({getattr(block, "elem_id", None) for block in page.blocks.values()})
    assert {"publish", "publish-repo"} <= names[0]
    assert not {"publish", "publish-repo"} & names[1]
    assert {"published", "whole-run"} <= names[1]
    assert "sign-in" not in names[0], "it is this machine's account that publishes"


def test_a_whole_run_is_packed_shown_and_deleted(app: App, run_id: int) -> None:
    press(app, "pack", "", run_id)
    if work := app.exports.work(Packing(run_id)):
        assert work.ended.wait(WAIT_S)
    seen = words(shown(app, run_id)["whole"])
    assert f"python -m upq unpack run-{run_id}.upq" in seen
    press(app, "delete-file", "", run_id)
    assert "Pack the run" in words(shown(app, run_id)["whole"])
    assert "when it is done" in words(render.whole_run(Place(Path(), 1, "INT4"), False, None, None))


def test_a_click_that_no_page_sends_is_a_sentence_or_nothing(app: App, run_id: int) -> None:
    for key in ("../..", "zip", ""):
        with pytest.raises(gr.Error, match="expected one of"):
            press(app, "delete", key, run_id)
    press(app, "make", DENSE, 77)
    press(app, "format", DENSE, run_id)
    assert not app.exports.folder.exists()


def test_no_text_from_outside_becomes_markup(tmp_path: Path) -> None:
    file = tmp_path / "a<b>.json"
    file.write_text(HOSTILE)
    row: dict[str, Any] = {**ROW, "title": HOSTILE, "runs_in": HOSTILE, "exactness": HOSTILE}
    kept = Kept(tmp_path, [file], HOSTILE, [Use(HOSTILE, HOSTILE)], [HOSTILE])
    place = Place(tmp_path / HOSTILE, 1, HOSTILE)
    sending = Sending(Wanted(1, HOSTILE, DENSE), "me/tiny", private=False)
    failed = Work(failure=UserError("x", HOSTILE, HOSTILE))
    failed.ended.set()
    lines = [Line(row, kept), Line(row, work=failed), Line(row | {"why_not": HOSTILE})]
    drawn = [
        render.formats(lines, is_portable=True),
        render.files(lines),
        render.about(HOSTILE, ["INT2"], HOSTILE),
        render.publishing(place, HOSTILE, {sending: failed}, [Line(row, kept)]),
        render.whole_run(place, True, None, failed),
        render.whole_run(place, True, file, None),
    ]
    for markup in drawn:
        seen = Structure(markup)
        assert not {"img", "form", "script"} & set(seen.tags)
        assert not [name for name, _ in seen.attributes if name.startswith("on")]
        assert "onerror" in seen.words or drawn.index(markup) == len(drawn) - 1


def test_only_finished_files_of_an_export_are_served_and_a_browser_keeps_them(
    open_app: OpenApp,
) -> None:
    made = asked(open_app, "make_export", [open_app.run_id, "INT4", DENSE]).results[0]
    folder = Path(made["folder"])
    assert {file["name"] for file in made["files"]} >= {"model.safetensors", "README.md"}

    def ask(path: Path | str) -> httpx.Response:
        return open_app.client.get(f"gradio_api/file={quote(str(path))}")

    page = folder / "page.html"
    page.write_text("<script>alert(1)</script>")
    for path in (folder / "model.safetensors", page):
        answer = ask(path)
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
    half = folder.parent / f"{STAGING_PREFIX}abc" / "half.gguf"
    half.parent.mkdir()
    half.write_text("half")
    data = folder.parent.parent
    assert (data / "upq.db").is_file()
    for path in (half, data / "upq.db", f"{folder}/../../upq.db", folder, "/etc/passwd"):
        assert ask(path).status_code in (403, 404), path


def test_programs_list_formats_and_make_files_once(open_app: OpenApp) -> None:
    rows = asked(open_app, "list_exports", [open_app.run_id, "INT4"]).results[0]
    by_key = {row["key"]: row for row in rows}
    assert by_key["packed"]["bits_per_weight"] < 5
    assert "why_not" in by_key["compressed-tensors"]
    first = asked(open_app, "make_export", [open_app.run_id, "INT4", "packed"]).results[0]
    assert first == asked(open_app, "make_export", [open_app.run_id, "INT4", "packed"]).results[0]
    assert first["uses"][0]["program"] == "transformers"
    assert MANIFEST not in {file["name"] for file in first["files"]}
    refused = asked(
        open_app, "make_export", [open_app.run_id, "INT4", "compressed-tensors"]
    ).refusal
    assert refused is not None
    assert by_key["compressed-tensors"]["why_not"] in refused
    assert asked(open_app, "make_export", [77, "INT4", "packed"]).refusal == (
        "There is no run 77. It may have been deleted."
    )
    assert "expected one of gguf" in str(
        asked(open_app, "make_export", [open_app.run_id, "INT4", "zip"]).refusal
    )
