"""The store, the models, the exports and the shared drawings as one visitor has them.

Handlers of the page and endpoints ask these as they ask the ones that they stand for, so none of them can forget to
ask whether the visitor may.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ui.public import permissions, sign_in
from ui.public.limits import Limits
from ui.public.room import Room
from ui.public.said import VisitorConversations, VisitorVotes
from ui.public.visitors import Visitors
from ui.shared import Shared
from ui.zero_gpu import ZeroGpu
from upq.config import CheckConfig, RunConfig
from upq.decode import Decoding, Piece, Reader
from upq.errors import UserError
from upq.jobs import Models, Served
from upq.jobs.background import Work
from upq.jobs.export_folder import Exports, Kept, Packing, Sending, Wanted
from upq.store import Labels, Moved, Run, Store
from upq.store import Wanted as WantedRuns

if TYPE_CHECKING:
    from upq.artifact import Artifact

T = TypeVar("T")
WAITING = ("queued", "running", "interrupted")


class VisitorStore(Store):
    """A store whose every answer is for whoever asks: other visitors' runs are not there."""

    def __init__(self, path: Path, visitors: Visitors, limits: Limits, room: Room) -> None:
        super().__init__(path)
        self.conversations = VisitorConversations(self._connections, visitors)
        self.votes = VisitorVotes(self._connections, visitors)
        self._visitors = visitors
        self._limits = limits
        self._room = room
        self._queueing = threading.RLock()

    @property
    def owner(self) -> str:
        """Whoever asks."""
        return self._visitors.asking()

    # The queue

    def enqueue(self, config: RunConfig, *, name: str = "", note: str = "") -> int:
        """Store.enqueue within the limits. Raises UserError as they do."""
        self._limits.judge_run(config)
        with self._queueing:
            self._require_place()
            self._room.make()
            return super().enqueue(config, name=name, note=note)

    def enqueue_check(self, config: CheckConfig, *, name: str = "") -> int:
        """Store.enqueue_check within the limits. Raises UserError as they do."""
        self._limits.judge_check_run(config)
        with self._queueing:
            self._require_place()
            self._room.make()
            return super().enqueue_check(config, name=name)

    def _require_place(self) -> None:
        waiting = [run for run in super().search(WantedRuns(), sys.maxsize) if run.state in WAITING]
        mine = sum(run.owner == self.owner for run in waiting)
        self._limits.judge_place(mine, len(waiting))

    def run(self, run_id: int) -> Run:
        """Store.run, where the visitor may see it."""
        run = super().run(run_id)
        permissions.require_sight(self.owner, run)
        return run

    def runs(
        self, limit: int = 100, kind: str | None = None, owner: str | None = None
    ) -> list[Run]:
        """Store.runs of the house and of the visitor."""
        return super().runs(limit, kind, self.owner)

    def search(self, wanted: WantedRuns, limit: int = 100) -> list[Run]:
        """Store.search among the runs of the house and of the visitor."""
        return super().search(replace(wanted, owner=self.owner), limit)

    def label(self, run_id: int, written: Labels) -> Run:
        """Store.label of a run of one's own."""
        self._require_change(run_id)
        return super().label(run_id, written)

    def live_run(self) -> Run | None:
        """Store.live_run, if that is one that the visitor may see."""
        run = super().live_run()
        return run if run and permissions.may_see(self.owner, run) else None

    def queue_position(self, run_id: int) -> int:
        """Store.queue_position among the runs of all."""
        self.run(run_id)
        return super().queue_position(run_id)

    def request_cancel(self, run_id: int) -> str:
        """Store.request_cancel of a run of one's own."""
        self._require_change(run_id)
        return super().request_cancel(run_id)

    def resume(self, run_id: int) -> str:
        """Store.resume of a run of one's own, within the limits."""
        run = self._require_change(run_id)
        with self._queueing:
            if run.state not in WAITING:
                self._require_place()
            return super().resume(run_id)

    def require_ended(self, run_id: int) -> None:
        """Store.require_ended of a run of one's own."""
        self._require_change(run_id)
        super().require_ended(run_id)

    def delete(self, run_id: int) -> None:
        """Store.delete of a run of one's own."""
        run = self._require_change(run_id)
        super().delete(run_id)
        self._room.clear(run)

    def _require_change(self, run_id: int) -> Run:
        run = super().run(run_id)
        permissions.require_change(self.owner, run)
        return run

    # What runs reported and left

    def metrics(self, run_id: int) -> list[dict[str, Any]]:
        """Store.metrics of a run that the visitor may see."""
        self.run(run_id)
        return super().metrics(run_id)

    def log_lines(self, run_id: int, limit: int = 200) -> list[tuple[float, str]]:
        """Store.log_lines of a run that the visitor may see."""
        self.run(run_id)
        return super().log_lines(run_id, limit)

    def measurements(self, run_id: int | None = None) -> list[dict[str, Any]]:
        """Store.measurements of one or all runs that the visitor may see."""
        seen = self._seen(run_id)
        return [row for row in super().measurements(run_id) if row["run_id"] in seen]

    def artifacts(self, run_id: int | None = None) -> list[Any]:
        """Store.artifacts of one or all runs that the visitor may see."""
        seen = self._seen(run_id)
        return [row for row in super().artifacts(run_id) if row.run_id in seen]

    def _seen(self, run_id: int | None) -> set[int]:
        if run_id is not None:
            return {self.run(run_id).id}
        return {run.id for run in self.runs(sys.maxsize)}

    def load_artifact(self, run_id: int, precision: str) -> Artifact:
        """Store.load_artifact of a run that the visitor may see."""
        self.run(run_id)
        return super().load_artifact(run_id, precision)

    def check_results(self, run_id: int) -> list[dict[str, Any]]:
        """Store.check_results of a run that the visitor may see."""
        self.run(run_id)
        return super().check_results(run_id)

    def pack(self, run_id: int, path: Path) -> Moved:
        """Store.pack of a run of one's own: it takes the checks of all along."""
        self._require_change(run_id)
        return super().pack(run_id, path)


class VisitorModels(Models):
    """Models of runs that the visitor may see, which answer within the limits, on a borrowed GPU where there is one."""

    def __init__(
        self, store: Store, visitors: Visitors, limits: Limits, gpu: ZeroGpu | None = None
    ) -> None:
        super().__init__(store)
        self._visitors = visitors
        self._limits = limits
        self._gpu = gpu
        if gpu:  # which this process never has itself
            self.device = torch.device("cpu")

    def get(self, run_id: int | None, precision: str, source: str) -> Served:
        """Models.get, with answers that are counted."""
        served = super().get(run_id, precision, source)
        lent = partial(self._gpu.answer, (run_id, precision, source)) if self._gpu else None
        return _BoundedServed(
            **vars(served), admit=self.admit, lent=lent, asking=self._visitors.asking
        )

    def admit(self, decoding: Decoding) -> None:
        """Models.admit within the limits. Raises UserError: answer_too_long, too_fast."""
        self._limits.judge_answer(self._visitors.asking(), decoding)


@dataclass(frozen=True)
class _BoundedServed(Served):
    """A model that asks before it answers.

    admit: raises UserError where there is to be no answer. lent: gives an answer on a borrowed GPU, as Served.write
    does; None where there is none. asking: names who asks.
    """

    admit: Callable[[Decoding], None]
    lent: Callable[..., Iterator[Piece]] | None
    asking: Callable[[], str]

    def reader(self) -> AbstractContextManager[Reader]:
        """Served.reader of the same visitor's: how fast an answer begins would tell what another one asked."""
        return self.last.lent(self.asking())

    def answer(
        self,
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Served.answer, where it is admitted. On a borrowed GPU no background work has to wait for it."""
        self.admit(decoding)
        compute = self.lent or super().answer
        yield from compute(messages, decoding, should_stop)

    def write(
        self,
        messages: list[dict[str, str]],
        decoding: Decoding,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Piece]:
        """Served.write, on the borrowed GPU where there is one."""
        compute = self.lent or super().write
        yield from compute(messages, decoding, should_stop)

    def time_alone(self, should_stop: Callable[[], bool]) -> Piece | None:
        """Served.time_alone; None on a borrowed GPU, whose time is the visitor's to spend."""
        return None if self.lent else super().time_alone(should_stop)


class VisitorExports(Exports):
    """Exports of runs that the visitor may see. Who began one may stop it; what is of the house stays."""

    def __init__(self, store: Store, folder: Path, visible: VisitorStore, limits: Limits) -> None:
        super().__init__(store, folder)
        self._visible = visible
        self._limits = limits
        #: What is being made or sent -> who began it.
        self._begun: dict[Wanted | Sending, str] = {}
        #: An export and who sent it -> where it is now.
        self._addresses: dict[tuple[Wanted, str], dict[str, None]] = {}

    def kept(self, wanted: Wanted) -> Kept | None:
        """Exports.kept of a run that the visitor may see; of what was sent, what they sent."""
        self._visible.run(wanted.run_id)
        kept = super().kept(wanted)
        sent = list(self._addresses.get((wanted, self._visible.owner), ()))
        return replace(kept, sent=sent) if kept else None

    def packed(self, packing: Packing) -> Path | None:
        """Exports.packed of a run that the visitor may see."""
        self._visible.run(packing.run_id)
        return super().packed(packing)

    def sendings(self, run_id: int, precision: str) -> dict[Sending, Work]:
        """Exports.sendings of the visitor, of a run that they may see."""
        self._visible.run(run_id)
        found = super().sendings(run_id, precision)
        return {key: work for key, work in found.items() if key.sender == self._visible.owner}

    def send(self, sending: Sending) -> Work | None:
        """Exports.send within the limits, by whoever is signed in. Raises UserError: not_signed_in, and as they do."""
        self._visible.run(sending.wanted.run_id)
        self._token()
        sending = replace(sending, sender=self._visible.owner)
        if not self._is_at_work(sending):
            self._admit(sending)
        return super().send(sending)

    def _token(self) -> str:
        found = sign_in.token()
        if found is None:
            raise UserError(
                "not_signed_in",
                "Nobody is signed in, so there is no account to send the model to.",
                "Sign in with Hugging Face, then publish.",
            )
        return found

    def _sent(self, sending: Sending, address: str) -> None:
        """Known to the sender alone, for as long as the app runs: the note at the files is everybody's."""
        self._addresses.setdefault((sending.wanted, sending.sender), {})[address] = None

    def pack(self, packing: Packing) -> Work | None:
        """Refused: a packed run is as large as all its models together."""
        raise _only_for_the_owner("Packing a run")

    def work(self, wanted: Wanted | Packing) -> Work | None:
        """Exports.work of a run that the visitor may see."""
        self._visible.run(wanted.run_id)
        return super().work(wanted)

    def make(self, wanted: Wanted) -> Work | None:
        """Exports.make within the limits. Raises UserError as they do."""
        self._visible.run(wanted.run_id)
        if not self._is_at_work(wanted) and super().kept(wanted) is None:
            self._admit(wanted)
        return super().make(wanted)

    def _admit(self, key: Wanted | Sending) -> None:
        """Note who begins something. Raises UserError("too_many_waiting")."""
        visitor = self._visible.owner
        at_work = {other: begun for other, begun in self._begun.items() if self._is_at_work(other)}
        mine = sum(begun == visitor for begun in at_work.values())
        if mine >= self._limits.exports or len(at_work) >= self._limits.queue:
            raise UserError(
                "too_many_waiting",
                f"{mine} of your exports and {len(at_work)} in all are being made or sent; a visitor has"
                f" {self._limits.exports} at a time, all together {self._limits.queue}.",
                "Wait for the end.",
            )
        self._begun = at_work | {key: visitor}

    def _is_at_work(self, key: Wanted | Sending) -> bool:
        work = self._works.get(key)
        return work is not None and work.is_busy

    def hand_over(self, old: str, new: str) -> None:
        """What one visitor began is another one's: the same person, who has signed in."""
        self._begun = {key: new if begun == old else begun for key, begun in self._begun.items()}

    def cancel(self, wanted: Wanted) -> None:
        """Exports.cancel of what the visitor began."""
        self._visible.run(wanted.run_id)
        if self._begun.get(wanted) != self._visible.owner:
            raise UserError(
                "not_yours",
                "Another visitor began this export, so you cannot stop it.",
                "Wait for its end; its files are yours as well.",
            )
        super().cancel(wanted)

    def delete(self, wanted: Wanted | Packing) -> None:
        """Exports.delete of a run of one's own."""
        permissions.require_change(self._visible.owner, self._visible.run(wanted.run_id))
        super().delete(wanted)


def _only_for_the_owner(what: str) -> UserError:
    return UserError(
        "not_yours",
        f"{what} is for the owner of this app alone.",
        "Install UPQ Studio on a machine of yours to do it there.",
    )


class VisitorShared(Shared):
    """What is drawn once for all pages of one visitor."""

    def __init__(self, visitors: Visitors) -> None:
        super().__init__()
        self._visitors = visitors

    def has(self, key: Hashable) -> bool:
        """Shared.has for the visitor."""
        return super().has((self._visitors.asking(), key))

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Shared.get for the visitor."""
        return super().get((self._visitors.asking(), key), make)
