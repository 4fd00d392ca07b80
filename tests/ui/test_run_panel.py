"""The panel of a run: its steps, its states, and what is said of its time."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.ui.test_render import Structure, a_run
from ui.html import parts, run_panel, words
from upq.config import preset
from upq.context import STAGES


def test_the_stepper_shows_what_is_done_current_and_open() -> None:
    html = run_panel.stepper(a_run(), now=30.0)
    drawn = len(STAGES) - 1  # by default INT4 has no end-to-end training
    assert re.findall(r'<li class="(\w+)"', html) == ["done", "done", "current"] + ["open"] * (
        drawn - 3
    )
    assert "10 s" in html


@pytest.mark.parametrize("state", ["cancelled", "failed", "interrupted", "queued"])
def test_the_step_that_a_run_stopped_in_is_not_done(state: str) -> None:
    ended = {"started": 20.0, "ended": 34.0, "total": 30}
    stages = a_run().stages | {"int4": ended}
    html = run_panel.stepper(a_run(state=state, stages=stages), now=50.0)
    found = re.findall(r'<li class="(\w+)"', html)
    assert found[:4] == ["done", "done", "stopped", "open"]
    assert "14 s" in html


def test_the_stepper_leaves_out_what_a_run_does_not_have() -> None:
    names = {
        method: re.findall(
            r"<span>([\w -]+)",
            run_panel.stepper(
                a_run(config=json.loads(preset("smoke", method).to_json())), now=30.0
            ),
        )
        for method in ("efficientqat", "unisvq")
    }
    assert names["efficientqat"] == [words.STAGE_NAMES[name] for name in STAGES]
    left_out = {words.STAGE_NAMES["int4_distill"], words.STAGE_NAMES["int2_distill"]}
    assert names["unisvq"] == [stage for stage in names["efficientqat"] if stage not in left_out]


def test_packing_after_int4_does_not_count_as_done_while_int2_trains() -> None:
    ended = {"started": 0.0, "ended": 1.0, "total": 0}
    stages = dict.fromkeys(("load", "data", "int4", "pack"), ended)
    html = run_panel.stepper(a_run(stage="int2", stages=stages | {"int2": ended}), now=9.0)
    steps = re.findall(r'<li class="(\w+)"[^>]*><i>.</i><span>([\w ]+)', html)
    assert {name: state for state, name in steps}["Pack"] == "open"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"state": "queued"}, "It is number 2 in the queue."),
        ({"state": "running", "cancel_requested": True}, "Cancelling"),
        ({"state": "done", "ended_at": 50.0}, "Done."),
        ({"state": "done", "gpu_peak_bytes": 8_500_000_000}, "2.1 GB, GPU 8.5 GB"),
        ({"state": "failed", "error_message": "The disk is full."}, "The disk is full."),
        ({"state": "cancelled"}, "Resume goes on from the last checkpoint."),
        ({"state": "interrupted", "error_message": "Crash 1 of 3."}, "continues by itself"),
    ],
)
def test_every_state_of_a_run_is_drawn(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in Structure(run_panel.run_panel(a_run(**changes), 2, 60.0)).words


def test_a_check_counts_answers_and_names_no_time_before_a_batch_is_through() -> None:
    early = a_run(kind="check", stage="check", stage_step=3, stage_total=180, detail="INT4")
    words_early = Structure(run_panel.run_panel(early, 0, 60.0)).words
    assert "answers3 / 180" in words_early
    assert "118 tok/s" in words_early
    assert "3 min 10 s" not in words_early + parts.worker_words(early, 0, True)
    later = a_run(kind="check", stage="check", stage_step=40, stage_total=180)
    assert "3 min 10 s" in Structure(run_panel.run_panel(later, 0, 60.0)).words


def test_without_a_run_the_panel_says_what_to_do() -> None:
    assert "press Start" in Structure(run_panel.run_panel(None, 0, 0.0)).words
