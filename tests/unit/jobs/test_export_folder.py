"""Exports that are kept: made once however many ask, stopped without a trace, and whatever goes wrong one sentence."""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.exported_runs import exportable_run
from tests.support.hub import Hub, in_place_of_the_hub
from upq.errors import UserError
from upq.export import CARD, PackedModel, Progress
from upq.export.dense import Dense
from upq.files import STAGING_PREFIX
from upq.jobs.background import Work
from upq.jobs.export_folder import Exports, Packing, Sending, Wanted
from upq.models import LoadedModel
from upq.store import Store, open_store

DENSE, PACKED = "safetensors", "packed"
WAIT_S = 60


@pytest.fixture
def run_id(store: Store, tiny: LoadedModel, tiny_model_dir: Path) -> int:
    return exportable_run(store, tiny, tiny_model_dir)


@pytest.fixture
def exports(store: Store, tmp_path: Path) -> Iterator[Exports]:
    exports = Exports(store, tmp_path / "exports")
    yield exports
    exports.stop()


class Gate:
    """Holds the writing of 16-bit files back until it is opened, and counts how often it began."""

    def __init__(self) -> None:
        self.reached, self.opened, self.count = threading.Event(), threading.Event(), 0

    def write(self, _: Dense, model: PackedModel, folder: Path, progress: Progress) -> None:
        (folder / "half.safetensors").write_bytes(b"half")
        self.count += 1
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        progress(0.5)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()

    def write(form: Dense, model: PackedModel, folder: Path, progress: Progress) -> None:
        gate.write(form, model, folder, progress)
        real(form, model, folder, progress)

    real: Callable[..., None] = Dense.write
    monkeypatch.setattr(Dense, "write", write)
    return gate


def ended(work: Work | None) -> Work:
    assert work is not None
    assert work.ended.wait(WAIT_S)
    return work


def names(exports: Exports) -> list[str]:
    return sorted(path.name for path in exports.folder.iterdir())


def test_an_export_is_kept_with_what_was_found_and_how_it_is_used(
    exports: Exports, run_id: int
) -> None:
    wanted = Wanted(run_id, "INT2", DENSE)
    assert exports.kept(wanted) is None
    assert ended(exports.make(wanted)).failure is None
    assert exports.work(wanted) is None
    kept = exports.kept(wanted)
    assert kept is not None
    assert kept.folder == exports.folder / f"run-{run_id}-INT2-safetensors"
    assert {"model.safetensors", CARD} <= {path.name for path in kept.files}
    assert kept.size_bytes == sum(path.stat().st_size for path in kept.files)
    assert kept.found.startswith("read back: every tensor")
    assert [use.program for use in kept.uses] == ["transformers", "vLLM"]
    assert exports.make(wanted) is None, "it is there"
    exports.delete(wanted)
    assert exports.kept(wanted) is None
    assert names(exports) == []


def test_twenty_who_ask_at_once_wait_for_the_same_one(
    exports: Exports, run_id: int, gate: Gate
) -> None:
    wanted = Wanted(run_id, "INT4", DENSE)
    with ThreadPoolExecutor(20) as pool:
        works = list(pool.map(lambda _: exports.make(wanted), range(20)))
    assert {id(work) for work in works} == {id(exports.work(wanted))}
    gate.opened.set()
    ended(works[0])
    assert gate.count == 1


def test_a_second_one_waits_for_its_turn_and_each_can_be_stopped(
    exports: Exports, run_id: int, gate: Gate
) -> None:
    first, second = Wanted(run_id, "INT4", DENSE), Wanted(run_id, "INT4", PACKED)
    at_work = exports.make(first)
    assert gate.reached.wait(WAIT_S)
    waiting = exports.make(second)
    assert at_work
    assert waiting
    assert (at_work.share, waiting.share) == (0.0, None)
    waiting.cancel()
    assert ended(waiting).failure is None
    at_work.cancel()
    gate.opened.set()
    assert ended(at_work).failure is None
    assert exports.kept(first) is exports.kept(second) is None
    assert names(exports) == []


def test_what_a_killed_app_left_is_removed_and_a_note_that_is_none_says_nothing(
    exports: Exports, run_id: int
) -> None:
    half = exports.folder / f"{STAGING_PREFIX}abc"
    half.mkdir(parents=True)
    wanted = Wanted(run_id, "INT4", PACKED)
    ended(exports.make(wanted))
    assert not half.exists()
    (exports.folder / f"{wanted.name}.json").write_text('{"found": ')
    kept = exports.kept(wanted)
    assert kept is not None
    assert (kept.found, kept.uses) == ("", [])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "could not be written: No space left"),
        (ZeroDivisionError("x"), "did not expect (ZeroDivisionError)"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_can_be_tried_again(
    exports: Exports,
    run_id: int,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    sentence: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    wanted = Wanted(run_id, "INT4", DENSE)
    with monkeypatch.context() as patch:
        patch.setattr(Dense, "write", fail)
        failure = ended(exports.make(wanted)).failure
        assert failure is not None
        assert sentence in failure.message
        assert names(exports) == []
    assert exports.work(wanted) is not None, "pages show why"
    assert ended(exports.make(wanted)).failure is None
    assert exports.kept(wanted) is not None


def test_a_damaged_artifact_makes_no_files(
    tmp_path: Path, tiny: LoadedModel, tiny_model_dir: Path
) -> None:
    store = open_store(tmp_path)
    exports = Exports(store, tmp_path / "exports")
    wanted = Wanted(exportable_run(store, tiny, tiny_model_dir), "INT4", DENSE)
    raw = sqlite3.connect(tmp_path / "upq.db", isolation_level=None)
    raw.execute("UPDATE parts SET data = zeroblob(length(data))")
    raw.close()
    failure = ended(exports.make(wanted)).failure
    store.close()
    assert failure is not None
    assert failure.code == "artifact_damaged"
    assert not exports.folder.exists()


def test_a_format_a_run_or_a_model_that_is_not_there_is_refused(
    exports: Exports, run_id: int
) -> None:
    for key in ("../..", "zip"):
        with pytest.raises(UserError, match="expected one of"):
            Wanted(run_id, "INT4", key)
    for wanted in (Wanted(77, "INT4", DENSE), Wanted(run_id, "INT8", DENSE)):
        with pytest.raises(UserError) as caught:
            exports.make(wanted)
        assert caught.value.code in ("run_not_found", "artifact_not_found")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with in_place_of_the_hub(monkeypatch) as running:
        yield running


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_model_is_made_and_sent_and_where_it_went_is_kept(
    exports: Exports, run_id: int, hub: Hub
) -> None:
    wanted = Wanted(run_id, "INT4", DENSE)
    for repo in ("me/tiny", "me/other", "me/tiny"):
        assert ended(exports.send(Sending(wanted, repo, private=True))).failure is None
    kept = exports.kept(wanted)
    assert kept is not None
    assert kept.sent == [f"{hub.address}/me/{name}" for name in ("tiny", "other")]
    assert kept.found.startswith("read back: every tensor"), "the note keeps what was found"
    assert hub.models["me/tiny"] == {
        path.relative_to(kept.folder).as_posix(): path.read_bytes() for path in kept.files
    }
    assert hub.private == {"me/tiny": True, "me/other": True}
    assert exports.sendings(run_id, "INT4") == {}


def test_a_model_that_did_not_arrive_says_why_and_its_files_stay(
    exports: Exports, run_id: int, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = Sending(Wanted(run_id, "INT4", DENSE), "somebody/tiny", private=False)
    assert ended(exports.send(sending)).failure is not None
    ((key, work),) = exports.sendings(run_id, "INT4").items()
    assert key == sending
    assert "rights to create a model" in str(work.failure)
    assert exports.sendings(run_id, "INT2") == {}
    kept = exports.kept(sending.wanted)
    assert kept is not None
    assert kept.sent == []
    monkeypatch.delenv("HF_TOKEN")
    unknown = Sending(Wanted(run_id, "INT2", DENSE), "me/tiny", private=False)
    failure = ended(exports.send(unknown)).failure
    assert failure is not None
    assert failure.code in ("no_token", "not_allowed")
    assert exports.kept(unknown.wanted) is None, "nothing is made for somebody who cannot send"
    with pytest.raises(UserError, match="expected OWNER/NAME"):
        Sending(sending.wanted, "tiny", private=False)


def test_a_whole_run_becomes_one_file_that_another_store_takes_in(
    exports: Exports, run_id: int, tmp_path: Path
) -> None:
    packing = Packing(run_id)
    assert exports.packed(packing) is None
    assert ended(exports.pack(packing)).failure is None
    file = exports.folder / f"run-{run_id}.upq"
    assert exports.packed(packing) == file
    assert exports.pack(packing) is None, "it is there"
    (tmp_path / "other").mkdir()
    other = open_store(tmp_path / "other")
    assert other.unpack(file).precisions == ["INT4", "INT2"]
    other.close()
    exports.delete(packing)
    assert exports.packed(packing) is None
    with pytest.raises(UserError, match="no run 77"):
        exports.pack(Packing(77))
