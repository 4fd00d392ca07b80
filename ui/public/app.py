"""The running app for visitors: the same page over what each of them may see."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from ui.app_state import App
from ui.public.guarded import VisitorExports, VisitorModels, VisitorShared, VisitorStore
from ui.public.limits import Limits
from ui.public.room import Room
from ui.public.visitors import VisitorCookie, Visitors
from upq.config import RunConfig
from upq.jobs import Supervisor
from upq.store import Store, database_path, exports_dir


@dataclass(kw_only=True)
class PublicApp(App):
    """An app that is open to strangers. house: the store as its owner sees it."""

    house: Store
    visitors: Visitors
    limits: Limits

    @classmethod
    def of(
        cls, folder: Path, house: Store, supervisor: Supervisor, downloads: Path, limits: Limits
    ) -> PublicApp:
        """The app of a data folder. downloads: a private folder for tables and reports."""
        visitors = Visitors(house)
        room = Room(house, folder, limits.disk_bytes)
        store = VisitorStore(database_path(folder), visitors, limits, room)
        return cls(
            store=store,
            models=VisitorModels(store, visitors, limits),
            supervisor=supervisor,
            export_dir=downloads,
            exports=VisitorExports(house, exports_dir(folder), store, limits),
            shared=VisitorShared(visitors),
            house=house,
            visitors=visitors,
            limits=limits,
        )

    def ready(self, config: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
        """App.ready within the limits: nothing of a model that visitors may not have is looked at."""
        self.limits.judge_run(config)
        return super().ready(config, chosen)

    def admit_check(self, suite: str, path: str, max_tokens: int) -> None:
        """Raises UserError for a check that visitors may not have, before a file of it is read."""
        self.limits.judge_check(suite, path, max_tokens)

    def is_busy(self) -> bool:
        """Whether a run of anybody is at work."""
        return self.house.live_run() is not None

    def own_folder(self) -> Path:
        """Where the tables and reports of whoever asks are written."""
        name = hashlib.sha256(self.visitors.asking().encode()).hexdigest()
        folder = self.export_dir / name
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def notice(self) -> str:
        """What every visitor is told at the top of the page."""
        return self.limits.words

    @property
    def guards(self) -> list[Any]:
        """What looks at requests before the page does."""
        exports = self.exports.folder
        return [
            Middleware(VisitorCookie, visitors=self.visitors, store=self.house, exports=exports)
        ]
