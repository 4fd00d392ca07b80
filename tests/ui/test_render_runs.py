"""What the Quantize tab says of runs: ranges of time, pauses for checks, labels, and what differs from a preset."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.ui.lab import Lab
from tests.ui.test_polls import app_of
from tests.ui.test_render import Structure, a_run
from ui.html import in_order, parts, run_panel, words
from ui.html.clock import clock
from ui.quantize import form as run_form
from ui.quantize import history, panel, render, render_history, render_settings
from ui.quantize.lookups import Lookups
from upq.config import RunConfig, command, preset, with_settings
from upq.context import STAGES
from upq.quantize.estimate import Estimate
from upq.store import Labels
from upq.units import NO_VALUE

DAY_S = 86_400


@pytest.mark.parametrize(
    ("low_s", "high_s", "text"),
    [
        (59 * 60, 96 * 60, "59 min to 1 h 36 min"),
        (3600, 2 * 3600, "1 to 2 h"),
        (3600, 5400, "1 h to 1 h 30 min"),
        (47 * 3600, 3 * DAY_S, "47 h to 3 days"),
        (3 * DAY_S, 5 * DAY_S, "3 to 5 days"),
        (1401 * DAY_S, 2277 * DAY_S, "3 to 6 years"),
    ],
)
def test_a_range_of_times_reads_well(low_s: float, high_s: float, text: str) -> None:
    assert words.span(low_s, high_s) == text


def test_an_estimate_of_many_days_advises_against_it() -> None:
    sizes: dict[str, Any] = {"memory_bytes": 1, "gpu_bytes": None, "fp16_bytes": 1}
    sizes |= {"int4_bytes": 1, "int2_bytes": 1, "skipped": [], "notes": []}
    for days, is_told in ((1, False), (9, True)):
        drawn = render.estimate_panel(Estimate(DAY_S / 2, days * DAY_S, **sizes))
        assert ("more than a machine should be asked" in drawn) is is_told
        assert "config and tokenizer too" in drawn, "the sizes are said to be the weights'"


def test_a_run_that_is_done_has_no_chart_that_waits() -> None:
    points = [{"series": "int2_block_after", "step": 0, "value": 0.1}]
    waiting = Structure(render.run_charts(a_run(), points)).words
    assert "The first block is not done yet." in waiting
    assert "Starts with the end-to-end training." in waiting
    done = Structure(render.run_charts(a_run(state="done"), points)).words
    assert "INT2 block error" in done
    assert "INT4 block error" not in done
    assert "Starts with" not in done


def test_stages_stand_in_their_order() -> None:
    assert in_order(sorted(STAGES)) == list(STAGES)
    assert in_order(["int4", "check", "load"]) == ["load", "int4", "check"]


def test_times_of_a_run_at_work_move_and_those_of_one_that_waits_do_not() -> None:
    live = run_panel.run_panel(a_run(), 0, now=75.0)
    clocks = re.findall(r'data-clock="(\w+)" data-seconds="([\d.]+)"', live)
    assert ("up", "55.0") in clocks, "the current stage"
    assert ("up", "26.0") in clocks, "20 s until the last sign of life, 6 s ago"
    assert ("down", "190.0") in clocks
    for state in ("done", "queued", "interrupted"):
        assert "data-clock" not in run_panel.run_panel(a_run(state=state), 1, now=75.0)
    assert clock(None, "down") == f"<span>{NO_VALUE}</span>"


def test_a_worker_that_imports_is_not_idle() -> None:
    assert "imports torch" in parts.worker_words(None, 0, is_ready=False)
    assert "idle" in parts.worker_words(None, 0, is_ready=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": "running"}, "Steps aside for check #5, goes on afterwards."),
        ({"state": "interrupted"}, "Stepped aside for check #5, goes on afterwards."),
        ({"state": "queued"}, "Stepped aside for check #5, goes on afterwards."),
        ({"state": "running", "cancel_requested": True}, "Cancelling"),
        ({"state": "cancelled"}, "Cancelled."),
    ],
)
def test_a_pause_for_a_check_is_told(changes: dict[str, Any], sentence: str) -> None:
    drawn = Structure(run_panel.run_panel(a_run(aside_for=5, **changes), 2, 60.0)).words
    assert sentence in drawn
    assert ("check #5" in drawn) == ("check #5" in sentence)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"started_at": None, "stages": {}, "stage": ""}, "It had not started."),
        ({"stage_step": 0}, "It has come to no checkpoint;"),
        ({"stage": "data", "stages": {}}, "It has come to no checkpoint;"),
        ({}, "Resume goes on from the last checkpoint."),
    ],
)
def test_a_checkpoint_is_named_only_where_there_is_one(
    changes: dict[str, Any], sentence: str
) -> None:
    run = a_run(state="cancelled", **changes)
    stopping = a_run(state="running", cancel_requested=True, **changes)
    for drawn in (Structure(run_panel.run_panel(each, 0, 60.0)).words for each in (run, stopping)):
        assert sentence in drawn
        assert ("last checkpoint" in drawn) is run.has_checkpoint


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage_step": 7}, "What it finished is kept; Resume goes on with the rest."),
        ({"stage_step": 0}, "Nothing of it was finished. Resume starts it over."),
        ({"started_at": None, "stages": {}, "stage_step": 0}, "It had not started."),
    ],
)
def test_a_check_that_failed_says_what_is_kept_of_it(
    changes: dict[str, Any], sentence: str
) -> None:
    run = a_run(kind="check", state="failed", error_message="It fell.", **changes)
    drawn = Structure(run_panel.run_panel(run, 0, 60.0)).words
    assert sentence in drawn
    assert "checkpoint" not in drawn
    assert "again starts over" not in drawn


def test_a_run_that_never_started_says_no_more_of_a_checkpoint_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path)
    run_id = lab.store.enqueue(RunConfig())
    lab.store.request_cancel(run_id)
    assert "starts over" in lab.store.resume(run_id)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": "queued"}, "#4 is queued, number 2."),
        ({"state": "running"}, "#4 started."),
        ({"state": "running", "cancel_requested": True}, "#4 stops"),
        ({"state": "failed", "error_message": "The disk is full."}, "#4 failed: The disk is full."),
        ({"state": "done"}, "#4 is done."),
        ({"state": "cancelled"}, "#4 is cancelled."),
        ({"state": "interrupted"}, "goes on by itself"),
        ({"state": "queued", "aside_for": 5}, "#4 steps aside for check #5"),
    ],
)
def test_the_line_below_start_says_the_state(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in Structure(render_history.started_line(a_run(**changes), 2)).words


def line_of(values: list[Any]) -> str:
    return str(dict(zip(vars_of_panel(), values, strict=True))["started"])


def vars_of_panel() -> list[str]:
    return list(panel.Panel.__dataclass_fields__)


def test_the_line_below_start_follows_the_run_of_this_page(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    first = lab.store.enqueue(RunConfig())
    mine = lab.store.enqueue(RunConfig())
    seen: Any = panel.NOTHING_SEEN
    said = []
    for step in range(4):
        values = panel.show(app, mine, mine, seen)
        said.append(line_of(values))
        seen = values[-1]
        assert panel.show(app, mine, mine, seen) == [gr.skip()] * len(values), "nothing new"
        if step in (0, 1):
            lab.store.request_cancel(first) if step == 0 else None
            claimed = lab.store.claim("cpu@here:1", 1, 30.0) if step == 1 else None
            assert step == 0 or (claimed is not None and claimed.id == mine)
        if step == 2:
            run = lab.store.run(mine)
            lab.store.lease(run).finish("failed", "disk_full", "The disk is full.")
    assert ["number 2" in said[0], "number 1" in said[1]] == [True, True]
    assert "started" in said[2]
    assert "failed: The disk is full." in said[3]


def test_a_button_acts_on_the_run_that_is_drawn_and_not_on_the_next_one(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    drawn, lease = lab.begun(RunConfig())
    following = lab.store.enqueue(RunConfig())
    values = panel.show(app_of(lab), panel.NEWEST, panel.NEWEST, panel.NOTHING_SEEN)
    labelled = dict(zip(vars_of_panel(), values, strict=True))["labelled"]
    assert labelled == drawn
    lease.finish("done")
    claimed = lab.store.claim("cpu@here:1", 1, 30.0)
    assert claimed is not None
    assert claimed.id == following
    said, shown = panel.act_on(lab.store.request_cancel, labelled)
    assert "already done" in said
    assert shown == drawn
    assert not lab.store.run(following).cancel_requested
    lab.store.delete(drawn)
    said, shown = panel.act_on(lab.store.request_cancel, labelled)
    assert "failed" in said
    assert shown == gr.skip()


def test_the_fields_of_a_run_are_not_filled_again_while_somebody_types(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    run_id, lease = lab.begun(RunConfig(), name="mine")
    names = vars_of_panel()
    first = dict(zip(names, panel.show(app, 0, 0, panel.NOTHING_SEEN), strict=True))
    assert (first["name"], first["labelled"]) == ("mine", run_id)
    lease.progress(1, None, None, "", 1, None)
    second = dict(zip(names, panel.show(app, 0, 0, first["seen"]), strict=True))
    assert second["summary"] != gr.skip()
    assert second["name"] == second["note"] == second["labelled"] == gr.skip()
    lab.store.label(run_id, Labels(note="from another window"))
    third = dict(zip(names, panel.show(app, 0, 0, second["seen"]), strict=True))
    assert third["note"] == "from another window"
    assert third["name"] == third["starred"] == gr.skip(), "somebody may be typing there"


def test_the_history_finds_stars_and_names_runs(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    app = app_of(lab)
    first, second = lab.done(preset("quick")), lab.done(preset("smoke"), name="tiny")
    history._act(app, "star", first, "")
    history._act(app, "name", first, "grid <b>")
    assert lab.store.run(first).starred
    rows = Structure(history._table(app, "grid", history.ANY_STATE, False)).words
    assert f"#{first}" in rows
    assert f"#{second}" not in rows
    assert f"#{second}" not in Structure(history._table(app, "", "done", True)).words
    assert "No run fits" in history._table(app, "", "failed", False)
    assert "Finished runs" in render_history.history_table([], {})
    drawn = history._table(app, "", history.ANY_STATE, False)
    assert "grid &lt;b&gt;" in drawn
    assert 'aria-pressed="true"' in drawn


def test_deleting_says_what_does_not_come_back() -> None:
    shipped = render_history.history_table([a_run(state="done", attempt=0)], {})
    assert "does not come back by itself" in shipped
    assert "pack" in shipped
    own = render_history.history_table([a_run(state="done")], {})
    assert "cannot be undone" in own
    assert "does not come back" not in own


def a_form() -> tuple[run_form.RunForm, dict[str, Any]]:
    with gr.Blocks():
        form = run_form.build()
    return form, {name: component.value for name, component in form.named.items()}


def test_what_differs_from_the_preset_is_listed_with_a_reset_and_the_command() -> None:
    form, values = a_form()
    assert run_form.differences(form, list(values.values())) == []
    values |= {"int4.group_size": 64, "seed": 7, "data.path": ""}
    found = run_form.differences(form, list(values.values()))
    assert found == [("seed", "0", "7"), ("int4.group_size", "32", "64")]
    drawn = run_form.changes_html(form, list(values.values()))
    assert "2 settings differ from Rotated UPQ, quick" in Structure(drawn).words
    config = with_settings(preset("quick"), {"int4.group_size": 64, "seed": 7})
    assert command(config) in Structure(drawn).words
    after = dict(zip(form.named, run_form.reset(form, "seed", list(values.values())), strict=False))
    assert after["seed"] == 0
    assert after["int4.group_size"] == gr.skip()
    everything = run_form.reset(form, render_settings.ALL, list(values.values()))
    named = dict(zip(form.named, everything, strict=False))
    assert (named["int4.group_size"], named["seed"], named["model_kind"]) == (32, 0, "bundled")
    strange = run_form.reset(form, "no such setting", list(values.values()))
    assert set(map(str, strange)) == {str(gr.skip())}


def test_a_setting_that_is_not_valid_is_listed_all_the_same() -> None:
    form, values = a_form()
    values |= {"int4.group_size": -5}
    drawn = Structure(run_form.changes_html(form, list(values.values()))).words
    assert "32 → -5" in drawn
    assert "command line" not in drawn, "no command can do that"


def test_every_setting_is_one_field_that_the_page_can_find() -> None:
    form, _ = a_form()
    marked = [
        component.elem_id
        for component in form.fields.values()
        if "setting" in (component.elem_classes or [])
    ]
    advanced = [path for path in form.fields if path not in run_form.DATA_FIELDS]
    assert marked == [render_settings.field_id(path) for path in advanced]
    assert len(set(marked)) == len(marked)
    assert form.model_text.label


def test_of_look_ups_that_overtake_each_other_the_newest_counts() -> None:
    lookups = Lookups()
    slow, fast = lookups.begin(), lookups.begin()
    assert lookups.is_newest(fast)
    assert not lookups.is_newest(slow)
    numbers = []
    threads = [threading.Thread(target=lambda: numbers.append(lookups.begin())) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(3, 12))
