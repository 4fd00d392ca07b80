"""The rules for strangers, without a page: owners, limits, room on the disk, and who may stop an export."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.visitors import ADA, BOB, SMOKE, Rules, code_of, rules_of
from tests.ui.lab import verdicts
from ui.public import said as said_by_visitors
from ui.public.guarded import VisitorExports, VisitorShared
from ui.public.said import VisitorConversations, VisitorVotes
from ui.public.visitors import NOBODY, Visitors
from upq.config import CheckConfig
from upq.errors import UserError
from upq.jobs.background import Work
from upq.jobs.export_folder import Exports, Packing, Sending, Wanted
from upq.store import (
    HOUSE,
    Content,
    Conversations,
    Exchange,
    Vote,
    Votes,
    checkpoint_dir,
    exports_dir,
    open_store,
)


@pytest.fixture
def rules(tmp_path: Path) -> Iterator[Rules]:
    made = rules_of(tmp_path)
    yield made
    made.store.close()
    made.house.close()


def test_a_run_belongs_to_whoever_queued_it(rules: Rules) -> None:
    of_house = rules.house.enqueue(SMOKE)
    of_ada = rules.store.enqueue(SMOKE)
    assert (rules.house.run(of_house).owner, rules.house.run(of_ada).owner) == (HOUSE, ADA)
    rules.visitors.now = BOB
    assert [run.id for run in rules.store.runs()] == [of_house]
    assert code_of(rules.store.run, of_ada) == "run_not_found"
    rules.visitors.now = NOBODY
    assert [run.id for run in rules.store.runs()] == [of_house]


def test_older_runs_of_a_visitor_are_not_pushed_out_by_those_of_others(rules: Rules) -> None:
    mine = rules.done()
    rules.visitors.now = BOB
    for _ in range(5):
        rules.done()
    rules.visitors.now = ADA
    assert [run.id for run in rules.store.runs(limit=2)] == [mine]


@pytest.mark.parametrize(
    "ask", ["metrics", "log_lines", "measurements", "artifacts", "check_results", "queue_position"]
)
def test_what_a_run_reported_is_not_there_for_others(rules: Rules, ask: str) -> None:
    run_id = rules.done()
    getattr(rules.store, ask)(run_id)
    rules.visitors.now = BOB
    assert code_of(getattr(rules.store, ask), run_id) == "run_not_found"


@pytest.mark.parametrize("change", ["request_cancel", "resume", "delete"])
def test_a_run_is_changed_by_its_owner_only(rules: Rules, change: str) -> None:
    of_ada = rules.done()
    of_house = rules.house.enqueue(SMOKE)
    assert code_of(getattr(rules.store, change), of_house) == "not_yours"
    rules.visitors.now = BOB
    assert code_of(getattr(rules.store, change), of_ada) == "run_not_found"
    rules.visitors.now = ADA
    getattr(rules.store, change)(of_ada)


def test_a_visitor_cannot_check_the_run_of_another(rules: Rules) -> None:
    of_ada = rules.done()
    config = CheckConfig(suite="builtin", precisions=("FP16",), run_id=of_ada, model="bundled")
    rules.visitors.now = BOB
    assert code_of(rules.store.enqueue_check, config) == "run_not_found"


def test_checks_of_a_run_of_the_house_belong_to_whoever_asked_for_them(rules: Rules) -> None:
    of_house = rules.house.enqueue(SMOKE)
    run = rules.house.claim("cpu@here:1", 1, 30.0)
    assert run is not None
    rules.house.lease(run).finish("done")
    config = CheckConfig(suite="builtin", precisions=("FP16",), run_id=of_house, model="bundled")
    check = rules.store.enqueue_check(config)
    claimed = rules.house.claim("cpu@here:1", 1, 30.0)
    assert claimed is not None
    lease = rules.house.lease(claimed)
    lease.save_check_result("FP16", 0, verdicts(True)[0])
    lease.finish("done")
    assert rules.store.check_results(check)
    rules.visitors.now = BOB
    assert code_of(rules.store.check_results, check) == "run_not_found"


def test_a_visitor_has_one_run_at_a_time_and_all_together_as_many_as_there_is_room_for(
    tmp_path: Path,
) -> None:
    rules = rules_of(tmp_path, runs=1, queue=2)
    rules.store.enqueue(SMOKE)
    assert code_of(rules.store.enqueue, SMOKE) == "too_many_waiting"
    rules.visitors.now = BOB
    rules.store.enqueue(SMOKE)
    rules.visitors.now = "browser carl"
    assert code_of(rules.store.enqueue, SMOKE) == "too_many_waiting"
    assert len(rules.house.runs()) == 2


def test_to_resume_a_run_is_to_queue_one(rules: Rules) -> None:
    first = rules.store.enqueue(SMOKE)
    rules.store.request_cancel(first)
    rules.store.enqueue(SMOKE)
    assert code_of(rules.store.resume, first) == "too_many_waiting"
    assert rules.house.run(first).state == "cancelled"


def test_many_who_ask_at_once_get_no_more_than_one_after_the_other(rules: Rules) -> None:
    outcomes: list[str] = []

    def ask() -> None:
        try:
            rules.store.enqueue(SMOKE)
            outcomes.append("queued")
        except UserError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["queued"] + ["too_many_waiting"] * 5


def filled(rules: Rules, run_id: int, size: int) -> None:
    """Let a run have an export and a checkpoint of half that size each."""
    exported = exports_dir(rules.folder) / f"run-{run_id}-INT4-packed"
    for place in (exported, checkpoint_dir(rules.folder, run_id)):
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"x" * (size // 2))
    (exports_dir(rules.folder) / f"run-{run_id}-INT4-packed.json").write_text("{}")


def test_the_oldest_finished_runs_of_visitors_make_room_for_new_ones(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, disk_bytes=2500, runs=9)
    of_house = rules.house.enqueue(SMOKE)
    run = rules.house.claim("cpu@here:1", 1, 30.0)
    assert run is not None
    rules.house.lease(run).finish("done")
    old, middle, new = rules.done(), rules.done(), rules.done()
    for run_id in (of_house, old, middle, new):
        filled(rules, run_id, 1000)
    last = rules.store.enqueue(SMOKE)
    assert [run.id for run in rules.house.runs()] == [last, new, middle, of_house]
    left = {path.name.split("-")[1] for path in exports_dir(tmp_path).iterdir()}
    assert left == {str(run_id) for run_id in (of_house, middle, new)}
    assert not checkpoint_dir(tmp_path, old).exists()


def test_results_of_checks_take_room_and_make_it(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, disk_bytes=1500, runs=9)
    of_house = rules.house.enqueue(SMOKE)
    check = CheckConfig(suite="builtin", precisions=("INT4",), run_id=of_house, model="bundled")
    checks = []
    while len(checks) < 2:
        checks += [rules.store.enqueue_check(check)]
        while run := rules.house.claim("cpu@here:1", 1, 30.0):
            lease = rules.house.lease(run)
            lease.save_check_result("INT4", 0, {"answer": "x" * 1000})
            lease.finish("done")
    last = rules.store.enqueue_check(check)
    assert [run.id for run in rules.house.runs()] == [last, checks[1], of_house]


def test_where_runs_at_work_fill_the_room_no_other_is_queued(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, disk_bytes=500, runs=9)
    waiting = rules.store.enqueue(SMOKE)
    filled(rules, waiting, 1000)
    assert code_of(rules.store.enqueue, SMOKE) == "no_room"
    assert [run.id for run in rules.house.runs()] == [waiting]


def test_what_was_made_of_a_run_goes_with_it(rules: Rules) -> None:
    run_id = rules.done()
    filled(rules, run_id, 1000)
    rules.store.delete(run_id)
    assert list(exports_dir(rules.folder).iterdir()) == []


def test_what_is_drawn_once_is_drawn_once_for_each_visitor(rules: Rules) -> None:
    shared = VisitorShared(rules.visitors)
    assert shared.get("panel", lambda: "ada's") == "ada's"
    assert shared.has("panel")
    rules.visitors.now = BOB
    assert not shared.has("panel")
    assert shared.get("panel", lambda: "bob's") == "bob's"


class AtWork(VisitorExports):
    """Exports of which one is at work until it is cancelled."""

    def begin(self, wanted: Wanted) -> Work:
        def until_cancelled(work: Work) -> None:
            while True:
                work.tell(0.5)
                time.sleep(0.01)

        self._begun[wanted] = self._visible.owner
        work = self._works.begin(wanted, until_cancelled)
        assert work is not None
        return work


def test_an_export_is_stopped_by_whoever_began_it_and_deleted_by_the_owner_of_its_run(
    rules: Rules,
) -> None:
    of_house, of_ada = rules.house.enqueue(SMOKE), rules.store.enqueue(SMOKE)
    exports = AtWork(rules.house, exports_dir(rules.folder), rules.store, rules.limits)
    shared, own = (Wanted(run_id, "INT4", "packed") for run_id in (of_house, of_ada))
    work = exports.begin(shared)
    rules.visitors.now = BOB
    assert exports.work(shared) is work
    assert code_of(exports.cancel, shared) == "not_yours"
    for ask in (exports.kept, exports.work, exports.make, exports.cancel, exports.delete):
        assert code_of(ask, own) == "run_not_found"
    rules.visitors.now = ADA
    assert code_of(exports.make, own) == "too_many_waiting"  # the other one is still at work
    assert code_of(exports.delete, shared) == "not_yours"
    for refused in (exports.pack, exports.delete):
        assert code_of(refused, Packing(of_house)) == "not_yours"
    assert exports.packed(Packing(of_house)) is None
    rules.visitors.now = BOB
    assert code_of(exports.packed, Packing(of_ada)) == "run_not_found"
    exports.hand_over(ADA, "hub 7")
    rules.visitors.now = ADA
    assert code_of(exports.cancel, shared) == "not_yours"
    rules.visitors.now = "hub 7"
    exports.cancel(shared)
    assert work.ended.wait(60)


def test_a_model_is_sent_by_who_sees_its_run_and_is_signed_in_alone(rules: Rules) -> None:
    of_house, of_ada = rules.house.enqueue(SMOKE), rules.store.enqueue(SMOKE)
    exports = VisitorExports(rules.house, exports_dir(rules.folder), rules.store, rules.limits)
    shared, own = (
        Sending(Wanted(run_id, "INT4", "packed"), "me/tiny", private=True)
        for run_id in (of_house, of_ada)
    )
    for sending in (shared, own):
        assert code_of(exports.send, sending) == "not_signed_in"
    rules.visitors.now = BOB
    assert code_of(exports.send, own) == "run_not_found"
    assert code_of(exports.sendings, of_ada, "INT4") == "run_not_found"


def test_a_visitor_takes_all_along_to_their_account_and_others_keep_theirs(rules: Rules) -> None:
    carol = "hub 7"
    of_house, of_ada = rules.house.enqueue(SMOKE), rules.done()
    rules.store.conversations.save(said("Where is my passport?"))
    votes = rules.store.votes
    assert votes.cast(a_vote(of_house, "card 1"))
    assert votes.cast(a_vote(of_house, "card 2"))
    rules.visitors.now = carol
    assert votes.cast(a_vote(of_house, "card 2")), "in another browser"
    rules.visitors.now = BOB
    of_bob = rules.done()
    rules.house.hand_over(ADA, carol)
    assert [run.id for run in rules.store.runs()] == [of_bob, of_house]
    rules.visitors.now = carol
    assert [run.id for run in rules.store.runs()] == [of_ada, of_house]
    assert rules.store.conversations.find().total == 1
    assert sorted(vote.showing for vote in votes.of(of_house)) == ["card 1", "card 2"]
    rules.visitors.now = ADA
    assert [run.id for run in rules.store.runs()] == [of_house]
    assert rules.store.conversations.find().total == 0


def test_every_method_of_the_exports_asks_whether_the_visitor_may() -> None:
    methods = {name for name in vars(Exports) if not name.startswith("_")}
    own = {name for name in vars(VisitorExports) if not name.startswith("_")}
    assert methods == own - {"hand_over"} | {"stop"}


def test_a_name_is_read_back_and_no_other_key_signs_it(rules: Rules, tmp_path: Path) -> None:
    cookie = rules.visitors.new()
    assert rules.visitors.named(cookie) == f"browser {cookie.partition('.')[0]}"
    assert Visitors(rules.house).named(cookie) == rules.visitors.named(cookie)
    (tmp_path / "other").mkdir()
    other = open_store(tmp_path / "other")
    assert Visitors(other).named(cookie) is None
    for bad in (None, "", ".", "a.b", cookie + "x", "\xe9.\xe9"):
        assert rules.visitors.named(bad) is None
    assert Visitors(rules.house).asking() == NOBODY
    other.close()


def said(question: str) -> Content:
    return Content(run_id=None, authors={}, exchanges=[Exchange(question=question, answers={})])


def test_conversations_are_those_of_whoever_asks_and_end_after_a_day(rules: Rules) -> None:
    kept = rules.store.conversations
    place = kept.save(said("Where is my passport?"))
    rules.visitors.now = BOB
    assert kept.find().total == kept.find("passport").total == 0
    for ask in (kept.get, kept.delete, lambda number: kept.rename(number, "mine")):
        assert code_of(ask, place.id) == "conversation_not_found"
    assert kept.delete_all() == 0
    assert kept.save(said("Over yours"), place).id != place.id, "nobody writes over another's"
    rules.visitors.now = ADA
    assert kept.find("passport").total == 1
    of_house = rules.house.conversations.save(said("Whose house is this?"))
    assert rules.house.conversations.expire(float("inf")) == 2
    assert kept.find().total == 0
    assert rules.house.conversations.get(of_house.id), "the owner's stay"


def test_visitors_fill_the_database_with_no_more_than_a_number_of_conversations_and_votes(
    rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = rules.house.enqueue(SMOKE)
    monkeypatch.setattr(said_by_visitors, "MOST_OF_ALL", 2)
    rules.house.conversations.save(said("mine"))
    rules.house.votes.cast(a_vote(run_id, "mine"))
    for number in range(4):
        rules.visitors.now = f"browser {number}"
        rules.store.conversations.save(said(f"number {number}"))
        rules.store.votes.cast(a_vote(run_id, f"card {number}"))
    assert [vote.showing for vote in rules.house.votes.of(run_id)] == ["mine", "card 2", "card 3"]
    assert rules.house.conversations.find().total == 1
    for number, kept in enumerate([0, 0, 1, 1]):
        rules.visitors.now = f"browser {number}"
        assert rules.store.conversations.find().total == kept


def a_vote(run_id: int, showing: str) -> Vote:
    return Vote(
        showing=showing,
        run_id=run_id,
        deck_id="1",
        prompt="Why?",
        settings={},
        seed=0,
        shown_a="FP16",
        shown_b="INT2",
        answer_a="a",
        answer_b="b",
        choice="A",
    )


def test_votes_are_those_of_whoever_asks_and_nobody_takes_anothers_showing(rules: Rules) -> None:
    run_id = rules.house.enqueue(SMOKE)
    vote = a_vote(run_id, "card 1")
    votes = rules.store.votes
    assert votes.cast(vote)
    assert not votes.cast(vote), "twice"
    rules.visitors.now = BOB
    assert votes.showings(run_id) == set()
    assert votes.of(run_id) == votes.outcomes(run_id) == []
    assert votes.cast(vote)
    assert len(votes.of(run_id)) == 1
    assert len(rules.house.votes.of(run_id)) == 2, "the owner counts all"


def test_every_method_on_what_was_said_asks_who_is_there() -> None:
    apart = {"newest", "runs", "answer", "keep_answer", "keep_newest", "expire", "most_kept"}
    for kind, guarded in ((Conversations, VisitorConversations), (Votes, VisitorVotes)):
        methods = {name for name in vars(kind) if not name.startswith("_")} - apart
        assert methods == {name for name in vars(guarded) if not name.startswith("_")} - apart
