"""The rules for strangers around a data folder, with visitors of whom the test says who asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ui.public.guarded import VisitorStore
from ui.public.limits import Limits
from ui.public.room import Room
from ui.public.visitors import Visitors
from upq.config import RunConfig, preset
from upq.errors import UserError
from upq.store import Store, database_path, open_store

ADA, BOB = "browser ada", "browser bob"
SMOKE = preset("smoke")


class Known(Visitors):
    """Visitors of whom the test says who asks."""

    now = ADA

    def asking(self) -> str:
        return self.now


@dataclass(frozen=True)
class Rules:
    """One data folder as its owner and as a visitor has it."""

    house: Store
    visitors: Known
    store: VisitorStore
    folder: Path
    limits: Limits

    def done(self, config: RunConfig = SMOKE) -> int:
        """Queue a run as the visitor and end it."""
        run_id = self.store.enqueue(config)
        run = self.house.claim("cpu@here:1", 1, 30.0)
        assert run is not None
        self.house.lease(run).finish("done")
        return run_id


def rules_of(folder: Path, **limits: Any) -> Rules:
    house = open_store(folder)
    visitors, chosen = Known(house), Limits(**limits)
    room = Room(house, folder, chosen.disk_bytes)
    store = VisitorStore(database_path(folder), visitors, chosen, room)
    return Rules(house, visitors, store, folder, chosen)


def code_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in caught.value.message
    return caught.value.code
