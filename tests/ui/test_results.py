"""Runs beside each other: what is gathered of them, and the report."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.ui.lab import Lab, chunks, marks, verdicts
from tests.ui.test_render import Structure
from ui import report as report_command
from ui.app_state import speed_note
from ui.results import MAX_RUNS, comparison, gather, render_compare, report
from ui.results.comparison import ResultRow, Subject
from ui.theme import STYLE_SHEET
from upq.cli.commands import config_of
from upq.cli.parser import parser
from upq.config import RunConfig, preset, with_settings
from upq.jobs import model_key


def quick(**changes: Any) -> RunConfig:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return with_settings(preset("quick", "upq"), dotted)


def only(subjects: list[Subject], label: str) -> ResultRow:
    (row,) = [row for subject in subjects for row in subject.rows if row.label == label]
    return row


def test_a_row_says_how_it_was_made_and_its_command_repeats_it(lab: Lab) -> None:
    config = quick(seed=3, int2__distill__beta=0.25)
    subjects = gather(lab.store, [lab.done(config)])
    row = only(subjects, "INT2")
    assert only(subjects, "RTN INT2").training_tokens is None
    assert (row.method, row.seed, row.training_tokens) == ("upq", 3, 8512)
    assert (row.run_seconds, row.peak_bytes) == (120.0, 2_000_000_000)
    assert (row.commit, row.machine) == ("0123456789ab+", "AMD EPYC, 2 cores, AVX2, 16 GB")
    assert (row.kl, row.kl_low, row.agreed_median) == (1.3, pytest.approx(1.17), 12.0)
    assert config_of(parser().parse_args(shlex.split(row.command)[3:])) == config


def test_scores_come_from_the_newest_finished_check_of_each_suite(lab: Lab) -> None:
    run_id = lab.done(quick())
    lab.checked(run_id, "ifeval", {"INT2": verdicts(True, True), "INT4": verdicts(True, False)})
    lab.checked(run_id, "ifeval", {"INT2": verdicts(True, False, False, False)})
    lab.checked(run_id, "mmlu", {"INT2": marks(True, True, True, False)})
    lab.checked(run_id, "wikitext2", {"INT2": chunks(3.0, 3.0, 3.0)})
    subjects = gather(lab.store, [run_id])
    scores = only(subjects, "INT2").scores
    assert (scores["ifeval"].value, scores["ifeval"].count) == (0.25, 4)
    assert scores["ifeval"].low < 0.25 < scores["ifeval"].high
    assert (scores["mmlu"].value, scores["mmlu"].count) == (0.75, 4)
    assert scores["wikitext2"].value == pytest.approx(math.exp(3.0))
    assert scores["wikitext2"].count == 3 * 2047
    assert only(subjects, "INT4").scores["ifeval"].value == 0.5
    assert only(subjects, "RTN INT2").scores == {}, "a baseline was not checked"


def test_a_speed_of_fp16_belongs_to_one_revision(lab: Lab) -> None:
    first, second = lab.done(quick(model__revision="v1")), lab.done(quick(model__revision="v2"))
    lab.store.set_note(speed_note(model_key(lab.store, first, "FP16", "bundled")), 42.0)
    fp16, other = (only(gather(lab.store, [run_id]), "FP16") for run_id in (first, second))
    assert (fp16.tokens_per_s, other.tokens_per_s) == (42.0, None)


def test_at_first_the_newest_finished_runs_of_one_model_are_compared(lab: Lab) -> None:
    old = lab.done(quick())
    other = lab.done(quick(model__source="owner/other"))
    assert comparison.newest(comparison.comparable(lab.store)) == [other]
    new = lab.done(quick(seed=1))
    lab.begun(quick(seed=2))
    lab.store.enqueue(quick(seed=3))
    runs = comparison.comparable(lab.store)
    assert comparison.newest(runs) == [new, old]
    assert len(runs) == 4, "a queued run has nothing to show"


def test_no_more_runs_than_there_are_colours_are_gathered(lab: Lab) -> None:
    ids = [lab.done(quick(seed=seed)) for seed in range(MAX_RUNS + 2)]
    subjects = gather(lab.store, [*ids, 999])
    assert [subject.run.id for subject in subjects] == ids[:MAX_RUNS]
    defined = set(re.findall(r"\.(slot\d) \{", STYLE_SHEET.read_text(encoding="utf-8")))
    assert {subject.slot for subject in subjects} == defined
    alone = gather(lab.store, [ids[2]])
    assert alone[0].slot == subjects[2].slot, "a run keeps its colour whatever stands beside it"


def test_runs_whose_numbers_have_one_colour_get_two() -> None:
    assert comparison.slots([3, 11, 12]) == {3: "slot3", 11: "slot4", 12: "slot5"}
    assert comparison.slots([3, 4]) == {3: "slot3", 4: "slot4"}


def test_minutes_count_work_and_no_pause(lab: Lab) -> None:
    run_id, lease = lab.begun(quick())
    lab.now += 20
    lease.metrics([("held_out_kl_int2", 0, 2.0, 5.0)])
    lease.finish("cancelled")
    lab.now += 90_000
    lab.store.resume(run_id)
    run = lab.store.claim("cpu@here:1", 1, 30.0)
    assert run is not None
    lease = lab.store.lease(run)
    lab.now += 10
    lease.metrics([("held_out_kl_int2", 1, 1.0, 0.0)])
    (subject,) = gather(lab.store, [run_id])
    assert subject.minutes["held_out_kl_int2"] == [(0.25, 2.0), (0.5, 1.0)]


def test_a_diff_names_only_what_differs_and_marks_the_presets_values(lab: Lab) -> None:
    first = quick(int2__distill__beta=0.25, seed=4)
    second = quick(int2__distill__beta=0.75)
    found = comparison.differing(first, second)
    assert [(setting.path, setting.values, setting.usual) for setting in found] == [
        ("seed", ("4", "0"), (False, True)),
        ("int2.distill.beta", ("0.25", "0.75"), (False, False)),
    ]
    assert comparison.differing(first, first) == []


def test_runs_with_other_held_out_answers_are_not_on_one_scale(lab: Lab) -> None:
    first, second = lab.done(quick()), lab.done(quick(seed=1))
    assert comparison.same_yardstick(gather(lab.store, [first, second]))
    third, lease = lab.begun(quick(data__held_out=4))
    lease.save_measurements([{"label": "FP16", "precision": "FP16", "ppl": 2.4, "tokens": 96}])
    lease.finish("done")
    subjects = gather(lab.store, [first, third])
    assert not comparison.same_yardstick(subjects)
    assert "not on one scale" in render_compare.remarks(subjects)


def test_a_report_holds_everything_and_asks_for_nothing(lab: Lab) -> None:
    ids = [lab.done(quick(), name="mine"), lab.done(quick(seed=5))]
    lab.checked(
        ids[0], "builtin", {"FP16": verdicts(True, response="Paris."), "INT2": verdicts(False)}
    )
    lab.checked(ids[0], "mmlu", {"FP16": marks(True, True), "INT2": marks(True, False)})
    text = report(gather(lab.store, ids))
    assert text.startswith("<!DOCTYPE html>\n")
    page = Structure(text.removeprefix("<!DOCTYPE html>"))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href"}
    assert not re.search(r"url\(|@import|https?:", text)
    for words in ("KL 1.300", "1.170\u20131.430", "AMD EPYC", "0123456789ab+", "mine", "Paris."):
        assert words in page.words
    for words in ("python -m upq run --model bundled", "MMLU", "Pareto front", "8,000", "seed"):
        assert words in page.words
    assert "prefers-color-scheme: dark" in text


def test_the_command_writes_the_report_and_says_what_is_wrong(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, out = lab.done(quick()), tmp_path / "report.html"
    start = ["--data-dir", str(tmp_path), "--out", str(out)]
    assert report_command.main([str(run_id), *start]) == 0
    assert "#1 UPQ" in out.read_text(encoding="utf-8")
    assert report_command.main(["77", *start]) == 2
    assert report_command.main([*map(str, range(1, MAX_RUNS + 2)), *start]) == 2
    assert (
        report_command.main([str(run_id), "--data-dir", str(tmp_path), "--out", str(tmp_path)]) == 2
    )
    complaints = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0].partition(".")[0] for line in complaints[:2]] == [
        "There is no run 77",
        f"A report compares at most {MAX_RUNS} runs",
    ]
    assert "could not be written" in complaints[2]
