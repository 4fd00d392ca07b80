"""A store whose clock a test moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store_cases import Clock
from upq.store import Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "upq.db", clock=clock)
    yield opened
    assert opened.doctor() == [] or opened.live_run() is not None
    opened.close()
