"""Runs beside each other as they are shown: the table with its shared rows, the charts, the CSV."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.ui.lab import KL, Lab, marks, measurement, verdicts
from tests.ui.test_render import HOSTILE, Structure
from tests.ui.test_results import only, quick
from ui.html import Html
from ui.html.axes import ZERO_SHARE
from ui.results import gather, render, render_compare, report
from ui.results.comparison import ResultRow, Score, Subject
from ui.results.shared_rows import filtered, merged
from upq.config import QUANTIZED, preset, with_settings


def renderings(subjects: list[Subject]) -> list[Html]:
    """Return everything that shows the runs."""
    rows = [row for subject in subjects for row in subject.rows]
    return [
        render.results_table(rows),
        render.results_table(rows, brief=True),
        *(render.size_against_quality(rows, name) for name in render.MEASURES),
        render_compare.kl_over_minutes(subjects),
        render_compare.all_block_errors(subjects),
        render_compare.overlay(subjects, "jsd"),
        render_compare.origins(subjects),
        render_compare.remarks(subjects),
        *(render_compare.differences(subjects[0], subject) for subject in subjects),
        Html(report(subjects).removeprefix("<!DOCTYPE html>")),
    ]


def test_no_text_from_outside_becomes_markup(lab: Lab) -> None:
    def shown(text: str) -> list[Html]:
        run_id = lab.done(
            quick(model__source=text, data__path=text, model__revision=text),
            name=text,
            served_by=text,
        )
        lab.checked(run_id, "builtin", {"FP16": verdicts(True, response=text)})
        other = lab.done(quick(), name=text)
        return renderings(gather(lab.store, [run_id, other]))

    for harmless, hostile in zip(shown("harmless"), shown(HOSTILE), strict=True):
        expected, found = Structure(harmless), Structure(hostile)
        assert found.tags == expected.tags
        assert not {name for name, _ in found.attributes} & {"src", "href", "onerror", "action"}
    assert "onerror" in found.words, "the text itself is shown"


def test_runs_without_any_result_have_a_state_of_their_own(lab: Lab) -> None:
    run_id, _ = lab.begun(quick())
    words = [Structure(html).words for html in renderings(gather(lab.store, [run_id]))]
    assert "No results yet." in words[0]
    assert "Nothing has been measured yet." in words[-1]
    failed, lease = lab.begun(quick())
    lease.finish("failed", "diverged", "The loss is not a number.", "Lower the rate.", "")
    assert "The loss is not a number." in report(gather(lab.store, [failed]))
    assert "No run is chosen." in render_compare.remarks([])
    assert "no run" in report([])


def measured_again(lab: Lab, **changes: Any) -> int:
    """Store a finished run whose baselines came out as given, and everything else as always."""
    run_id, lease = lab.begun(quick(seed=9))
    rows = [measurement(label, kl) for label, kl in KL.items()]
    lease.save_measurements([row | changes if "RTN" in row["label"] else row for row in rows])
    lease.finish("done")
    return run_id


def rows_of(lab: Lab, *run_ids: int) -> list[ResultRow]:
    return merged([row for subject in gather(lab.store, run_ids) for row in subject.rows])


def test_fp16_and_equal_baselines_are_one_row_for_a_model_and_of_no_run(lab: Lab) -> None:
    first, second = lab.done(quick()), measured_again(lab, kl=13.0)
    third = measured_again(lab, kl=13.0 * (1 + 1e-6))
    rows = rows_of(lab, first, second)
    assert [render.row_name(row) for row in rows] == [
        "FP16",
        "#1 INT4",
        "#1 INT2",
        "RTN INT4 (#1)",
        "#2 INT4",
        "#2 INT2",
        "RTN INT4 (#2)",
        "RTN INT2",
    ], "the second run's RTN INT4 has other figures"
    assert {row.runs for row in rows if row.label in ("FP16", "RTN INT2")} == {(1, 2)}
    for row in rows:
        if row.run is None:
            assert not any((row.method, row.preset, row.commit, row.command, row.run_seconds))
    assert len(rows_of(lab, first, second, third)) == len(rows) + 2, "two more models, nothing else"
    words = Structure(render.results_table(rows)).words
    assert "beside #1, #2" in words
    assert words.count("RTN INT4beside #2") == 1
    assert "measured on different held-out answers" in words
    alike = Structure(render.results_table(rows_of(lab, first))).words
    assert "different held-out answers" not in alike


def test_runs_of_other_held_out_answers_have_fp16_once_and_their_baselines_behind_them(
    lab: Lab,
) -> None:
    runs = [lab.done(quick())]
    for tokens in (3000, 3000, 4000):
        run_id, lease = lab.begun(quick())
        lease.save_measurements(
            {**measurement(label, kl), "tokens": tokens, "ppl": tokens / 1000}
            for label, kl in KL.items()
        )
        lease.finish("done")
        runs.append(run_id)
    rows = rows_of(lab, *runs)
    names = [render.row_name(row) for row in rows]
    assert names[:5] == ["FP16", "#1 INT4", "#1 INT2", "RTN INT4 (#1)", "RTN INT2 (#1)"]
    behind = names.index("#3 INT2") + 1
    assert names[behind : behind + 2] == ["RTN INT4 (#2, #3)", "RTN INT2 (#2, #3)"]
    assert len(names) == 1 + 2 * 4 + 2 * 3
    assert (rows[0].runs, rows[0].kl, rows[0].ppl) == (tuple(runs), 0.0, None)


def test_a_shared_row_has_the_score_of_the_largest_check(lab: Lab) -> None:
    first, second = lab.done(quick()), lab.done(quick(seed=1))
    lab.checked(first, "mmlu", {"FP16": marks(True, True, True, False)})
    lab.checked(second, "mmlu", {"FP16": marks(False, False)})
    row = next(row for row in rows_of(lab, first, second) if row.label == "FP16")
    assert (row.scores["mmlu"].value, row.scores["mmlu"].count) == (0.75, 4)


def test_filters_leave_what_was_asked_for_beside_its_yardsticks(lab: Lab) -> None:
    other = with_settings(preset("quick", "rtn"), {"model.source": "owner/other"})
    rows = rows_of(lab, lab.done(quick()), lab.done(other))
    assert filtered(rows, [], [], []) == rows
    names = [render.row_name(row) for row in filtered(rows, [], ["rtn"], ["INT2"])]
    assert names == ["#2 INT2", "RTN INT2", "RTN INT2"]
    assert {row.model for row in filtered(rows, ["other"], [], [])} == {"other"}
    assert "No row is left" in render.filtered_table(rows, [])


def test_a_baseline_that_stands_apart_goes_with_its_run(lab: Lab) -> None:
    rows = rows_of(lab, lab.done(quick()), lab.done(preset("quick", "efficientqat"), scale=0.5))
    names = [render.row_name(row) for row in filtered(rows, [], ["efficientqat"], ["INT2"])]
    assert names == ["#2 INT2", "RTN INT2 (#2)"]


def test_the_front_is_named_and_holds_no_baseline(lab: Lab) -> None:
    rows = rows_of(lab, lab.done(quick()), lab.done(quick(seed=1), scale=0.5))
    chart = render.size_against_quality(rows, "kl")
    assert "Pareto front: #2 INT2, #2 INT4, FP16" in Structure(chart).words
    assert len(re.findall(r'class="dot ', chart)) == len(rows) == 2 * 2 + 1 + 2 * 2
    (lonely,) = [row for row in rows_of(lab, 1) if row.label == "RTN INT2"]
    smaller = replace(lonely, size_bytes=1, top1=0.0)
    front = Structure(render.size_against_quality([*rows, smaller], "top1")).words
    assert "Pareto front: #2 INT2, #2 INT4, FP16" in front, "small as it is"
    top1 = render.size_against_quality(rows, "top1")
    assert "Pareto front: #2 INT2, #2 INT4, FP16" in Structure(top1).words
    assert "Checks tab" in render.size_against_quality(rows, "mmlu")


def test_a_model_without_a_curve_is_a_point_where_it_was_done(lab: Lab) -> None:
    run_id, lease = lab.begun(quick())
    for stage in ("load", "int4", "int2", "measure"):
        lease.stage(stage, 1)
        lab.now += 30
        lease.progress(1, 99.0, 0.0, "", 2_000_000_000, None)
    lease.save_measurements([measurement("INT4", 0.12), measurement("INT2", 1.3)])
    lease.finish("done")
    (subject,) = gather(lab.store, [run_id])
    points = {
        precision.name: list(render_compare.kl_series(subject, precision).points)
        for precision in QUANTIZED
    }
    assert points == {"INT4": [(1.0, 0.12)], "INT2": [(1.5, 1.3)]}
    assert subject.run.worked_s == 120.0
    words = Structure(render_compare.kl_over_minutes([subject])).words
    assert "#1 UPQ INT4, when it was done" in words


def test_stages_are_listed_in_their_order(lab: Lab) -> None:
    run_id, lease = lab.begun(quick())
    for stage in ("load", "int4", "int2_distill", "int2", "data", "measure"):
        lease.stage(stage, 1)
        lab.now += 5
    lease.finish("done")
    words = Structure(render_compare.origins(gather(lab.store, [run_id]))).words
    listed = words[words.index("stage") :]
    names = ["Load", "Data", "INT4 block-wise", "INT2 block-wise", "INT2 end to end", "Measure"]
    assert sorted(names, key=listed.index) == names


def test_a_chart_can_be_read_by_pointer_keyboard_and_table(lab: Lab) -> None:
    ids = [lab.done(quick()), lab.done(quick(seed=1), scale=0.5)]
    subjects, rows = gather(lab.store, ids), rows_of(lab, *ids)
    charts = {
        "overlay": render_compare.overlay(subjects, "jsd"),
        "scatter": render.size_against_quality(rows, "kl"),
        "minutes": render_compare.kl_over_minutes(subjects),
    }
    groups = [set(re.findall(r'type="radio" name="([\w-]+)"', one)) for one in charts.values()]
    assert [len(group) for group in groups] == [1, 1, 1], "one stop of the Tab key each"
    assert len(set.union(*groups)) == len(charts), "arrow keys stay in their chart"
    for chart in charts.values():
        assert "Values as a table" in Structure(chart).words
    assert 'aria-label="step 0: #1 UPQ 1; #2 UPQ 0.5"' in charts["overlay"]
    assert 'aria-label="FP16: size 269 MB; Mean KL to FP16 (nats) 0"' in charts["scatter"]


def test_fp16_stands_below_the_break_of_a_log_axis(lab: Lab) -> None:
    rows = rows_of(lab, lab.done(quick()))
    broken = render.size_against_quality(rows, "kl")
    whole = render.size_against_quality([row for row in rows if row.label != "FP16"], "kl")
    assert "y-break" in broken
    assert "below the break" in broken
    assert "break" not in whole
    assert "y-break" not in render.size_against_quality(rows, "top1")
    (place,) = re.findall(r'class="dot fp16" style="left:[\d.]+%;bottom:([\d.]+)%"', broken)
    others = re.findall(
        r'class="dot (?:slot1|plain)" style="left:[\d.]+%;bottom:([\d.]+)%"', broken
    )
    assert float(place) == 0.0
    assert min(map(float, others)) >= 100 * ZERO_SHARE


def test_a_run_has_one_colour_in_every_chart(lab: Lab) -> None:
    subjects = gather(lab.store, [lab.done(quick(seed=seed)) for seed in range(3)][1:])
    rows = merged([row for subject in subjects for row in subject.rows])
    for chart in (
        render.size_against_quality(rows, "kl"),
        render_compare.kl_over_minutes(subjects),
        render_compare.overlay(subjects, "jsd"),
        render.results_table(rows),
    ):
        assert {"slot2", "slot3"} == set(re.findall(r"slot\d", chart))


def test_the_table_sorts_by_numbers_and_has_no_empty_column(lab: Lab) -> None:
    rows = gather(lab.store, [lab.done(quick())])[0].rows
    table = render.results_table(rows)
    assert 'data-key="88408646"' in table
    assert "MMLU" not in table
    assert "commit" in table
    lab.checked(1, "mmlu", {"INT2": marks(True, False)})
    assert "MMLU" in render.results_table(gather(lab.store, [1])[0].rows)
    brief = render.results_table(rows, brief=True)
    assert "data-key" not in brief
    assert "MMLU" not in brief
    assert "0.120" in brief
    assert "0.108\u20130.132" in brief, "the interval"


ENGINE = "native C, INT4, 8-bit activations, AVX2, 2 threads"


def test_what_the_chat_answers_with_stands_beside_what_was_measured(lab: Lab) -> None:
    subjects = gather(lab.store, [lab.done(quick(), served_by=ENGINE)])
    (subject,) = subjects
    for brief in (False, True):
        table = render.results_table(subject.rows, brief=brief)
        words = Structure(table).words
        assert "KL as served" in words
        assert "0.120" in words
        assert "0.121" in words
        assert f"the engine that answers in the chat gives on the same tokens ({ENGINE})." in words
        assert f'title="{ENGINE}: top-1 88.4 %, perplexity 2.04"' in table
    rows = {
        row["label"]: row for row in csv.DictReader(io.StringIO(render.rows_as_csv(subject.rows)))
    }
    assert float(rows["INT4"]["served_kl"]) == pytest.approx(0.1212)
    assert (rows["INT4"]["served_by"], rows["RTN INT4"]["served_by"]) == (ENGINE, "")
    assert "top-1 89.3 %; as served KL 0.121, top-1 88.4 %" in report(subjects)


def test_where_one_engine_does_both_there_is_one_figure(lab: Lab) -> None:
    subjects = gather(lab.store, [lab.done(quick())])
    assert only(subjects, "INT4").served_kl is None
    for shown in (render.results_table(subjects[0].rows, brief=True), Html(report(subjects))):
        assert "s served" not in shown
    whole = Structure(render.results_table(subjects[0].rows)).words
    assert "As served:" not in whole


def test_csv_holds_every_column_and_reads_back(lab: Lab) -> None:
    run_id = lab.done(quick(model__source="=cmd('x')", int2__distill__beta=0.25))
    lab.checked(run_id, "mmlu", {"INT2": marks(True, False)})
    text = render.rows_as_csv(gather(lab.store, [run_id])[0].rows)
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["INT2"]["model"] == "'=cmd('x')"
    assert float(rows["INT4"]["size_bytes"]) == 88_408_646
    assert (rows["INT2"]["mmlu_value"], rows["INT4"]["mmlu_value"]) == ("0.5", "")
    assert rows["INT2"]["commit"] == "0123456789ab+"
    assert "--set int2.distill.beta=0.25" in rows["INT2"]["command"]


def test_a_score_shows_its_interval_and_its_count() -> None:
    cell = render.score_cell("mmlu", Score(0.25, 0.2, 0.31, 1140))
    assert Structure(cell).words == "25.0 % 20.0\u201331.0 % of 1,140"
    assert render.score_cell("mmlu", None) == "\u2013"


def test_csv_counts_what_was_cut_and_what_repeats(lab: Lab) -> None:
    run_id = lab.done(quick())
    ended = [
        one | {"ending": {"finish": finish, "tokens": 8, "repeats": False}}
        for one, finish in zip(verdicts(True, True), ("stop", "length"), strict=True)
    ]
    lab.checked(run_id, "ifeval", {"FP16": verdicts(True, True), "INT2": ended})
    text = render.rows_as_csv(gather(lab.store, [run_id])[0].rows)
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(text))}
    assert (rows["INT2"]["ifeval_cut"], rows["INT2"]["ifeval_repeats"]) == ("1", "0")
    assert rows["FP16"]["ifeval_cut"] == "", "not known"
