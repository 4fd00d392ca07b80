"""The running app for visitors: the same page over what each of them may see."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from ui.app_state import App, Offer, device_line
from ui.public import sign_in
from ui.public.guarded import VisitorExports, VisitorModels, VisitorShared, VisitorStore
from ui.public.limits import SUITES, Limits
from ui.public.room import Room
from ui.public.visitors import VisitorCookie, Visitors
from ui.zero_gpu import ZeroGpu
from upq.config import RunConfig
from upq.jobs import Supervisor
from upq.store import Store, database_path, exports_dir


@dataclass(frozen=True)
class Place:
    """Where an app keeps what it has. store: of the data folder; downloads: a private folder for tables and reports."""

    folder: Path
    store: Store
    downloads: Path


@dataclass(kw_only=True)
class PublicApp(App):
    """An app that is open to strangers. house: the store as its owner sees it. gpu: lent for answers, if it is."""

    house: Store
    visitors: Visitors
    limits: Limits
    exports: VisitorExports
    gpu: ZeroGpu | None = None

    @classmethod
    def of(
        cls, place: Place, supervisor: Supervisor, limits: Limits, gpu: ZeroGpu | None = None
    ) -> PublicApp:
        """The app of a data folder."""
        folder, house = place.folder, place.store
        visitors = Visitors(house)
        room = Room(house, folder, limits.disk_bytes)
        store = VisitorStore(database_path(folder), visitors, limits, room)
        return cls(
            store=store,
            models=VisitorModels(store, visitors, limits, gpu),
            supervisor=supervisor,
            export_dir=place.downloads,
            exports=VisitorExports(house, exports_dir(folder), store, limits),
            may_publish=sign_in.is_offered(),
            shared=VisitorShared(visitors),
            house=house,
            visitors=visitors,
            limits=limits,
            gpu=gpu,
        )

    @cached_property
    def device_line(self) -> str:
        """Describe the machine that chat and runs compute on."""
        return "a borrowed GPU for answers, CPU for runs" if self.gpu else device_line()

    @property
    def offer(self) -> Offer:
        """What visitors may have."""
        limits = self.limits
        return Offer(limits.models, limits.presets, False, SUITES, limits.tokens)

    def admit_run(self, config: RunConfig) -> None:
        """Raises UserError("not_for_visitors") for a run that visitors may not have."""
        self.limits.judge_run(config)

    def ready(self, config: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
        """App.ready within the limits: nothing of a model that visitors may not have is looked at."""
        self.admit_run(config)
        return super().ready(config, chosen)

    def admit_check(self, suite: str, path: str, max_tokens: int) -> None:
        """Raises UserError for a check that visitors may not have, before a file of it is read."""
        self.limits.judge_check(suite, path, max_tokens)

    def is_busy(self) -> bool:
        """Whether a run of anybody is at work."""
        return self.house.live_run() is not None

    def hand_over(self, old: str, new: str) -> None:
        """Give what is one visitor's to another one: whoever signs in takes along what the browser had."""
        self.house.hand_over(old, new)
        self.exports.hand_over(old, new)

    def own_folder(self) -> Path:
        """Where the tables and reports of whoever asks are written."""
        name = hashlib.sha256(self.visitors.asking().encode()).hexdigest()
        folder = self.export_dir / name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def has_commands(self) -> bool:
        """Visitors cannot."""
        return False

    @property
    def signs_in(self) -> bool:
        """Visitors publish with accounts of their own."""
        return True

    @property
    def notice(self) -> tuple[str, str]:
        """What every visitor is told at the top of the page, in a line and a smaller one."""
        return self.limits.words

    @property
    def guards(self) -> list[Any]:
        """What looks at requests before the page does."""
        cookie = Middleware(
            VisitorCookie,
            visitors=self.visitors,
            store=self.house,
            exports=self.exports.folder,
            hand_over=self.hand_over,
        )
        return [Middleware(sign_in.WholeTarget), cookie]
