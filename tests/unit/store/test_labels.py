"""Names, notes and stars of runs, and the search through runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.store_cases import a_check, claimed
from upq.config import RunConfig, preset
from upq.errors import UserError
from upq.store import Labels, Store, Wanted


def test_labels_are_written_one_by_one_and_seen_as_a_change(store: Store) -> None:
    run_id = store.enqueue(RunConfig(), name="first", note="why")
    before = store.latest_revision()
    store.label(run_id, Labels(starred=True))
    run = store.label(run_id, Labels(note="one\ntwo"))
    assert (run.name, run.note, run.starred) == ("first", "one\ntwo", True)
    assert store.latest_revision() == run.revision > before
    assert store.label(run_id, Labels(name="first")).revision == run.revision, "nothing changed"


def test_a_running_run_takes_a_name_and_its_worker_notices_nothing(store: Store) -> None:
    run_id = store.enqueue(RunConfig())
    lease = store.lease(claimed(store))
    store.label(run_id, Labels(name="while it runs"))
    lease.progress(1, None, None, "", 1, None)
    assert store.run(run_id).name == "while it runs"


def test_a_name_is_one_clean_line_and_a_note_keeps_its_lines(store: Store) -> None:
    run_id = store.enqueue(RunConfig(), name=" a\n b\x00\ud800 ")
    run = store.label(run_id, Labels(note="\n x\r\ny \n"))
    assert (run.name, run.note) == ("a b?", "x\ny")


@pytest.mark.parametrize("labels", [Labels(name="n" * 201), Labels(note="n" * 4001)])
def test_a_label_that_is_too_long_is_refused_and_nothing_is_cut(
    store: Store, labels: Labels
) -> None:
    run_id = store.enqueue(RunConfig(), name="kept", note="kept")
    with pytest.raises(UserError, match="at most") as caught:
        store.label(run_id, labels)
    assert caught.value.code == "bad_label"
    assert (store.run(run_id).name, store.run(run_id).note) == ("kept", "kept")
    with pytest.raises(UserError):
        store.enqueue(RunConfig(), name=labels.name or "", note=labels.note or "")
    assert len(store.runs()) == 1
    with pytest.raises(UserError, match="no run 99"):
        store.label(99, Labels(starred=True))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(), [4, 3, 2, 1]),
        (Wanted(kind="quantize"), [3, 2, 1]),
        (Wanted(text="GRID search"), [2]),
        (Wanted(text="gptq"), [1]),
        (Wanted(text="#3"), [3]),
        (Wanted(text="100%"), [3]),
        (Wanted(text="no_such' OR 1=1 --"), []),
        (Wanted(name="grid"), [2]),
        (Wanted(note="grid"), [1]),
        (Wanted(starred=True), [2]),
        (Wanted(state="cancelled"), [3]),
        (Wanted(state="queued", kind="check"), [4]),
    ],
)
def test_runs_are_found_by_what_is_written_on_them(
    store: Store, wanted: Wanted, found: list[int]
) -> None:
    store.enqueue(preset("smoke", "gptq"), note="compare with grid 2")
    store.enqueue(preset("smoke", "upq"), name="Grid of the search")
    store.enqueue(preset("smoke", "upq"), name="100% done")
    store.enqueue_check(a_check(1))
    store.label(2, Labels(starred=True))
    store.request_cancel(3)
    assert [run.id for run in store.search(wanted)] == found


def test_labels_travel_with_a_packed_run_and_do_not_make_another_run_of_it(
    store: Store, tmp_path: Path
) -> None:
    run_id = store.enqueue(RunConfig(), name="given", note="two\nlines")
    store.lease(claimed(store)).finish("done")
    store.label(run_id, Labels(starred=True))
    store.pack(run_id, tmp_path / "run.upq")
    elsewhere = Store(tmp_path / "elsewhere.db")
    taken = elsewhere.unpack(tmp_path / "run.upq").run_id
    run = elsewhere.run(taken)
    assert (run.name, run.note, run.starred) == ("given", "two\nlines", False)
    elsewhere.label(taken, Labels(name="renamed here"))
    elsewhere.unpack(tmp_path / "run.upq")
    assert [run.name for run in elsewhere.runs()] == ["renamed here"]
    elsewhere.close()
