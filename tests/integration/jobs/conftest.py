"""A data folder, and processes and supervisors that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import worker_process

from tests.support.job_cases import Spawn, processes
from upq.jobs import Supervisor
from upq.store import Store, open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data with a space and ü"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    folder.mkdir()
    opened = open_store(folder)
    yield opened
    assert opened.doctor() == []
    opened.close()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    with processes() as start:
        yield start


@pytest.fixture
def supervise(store: Store, folder: Path) -> Iterator[Callable[[], Supervisor]]:
    """Starts a Supervisor over test workers, impatient with cancels; stops it after the test."""
    started: list[Supervisor] = []

    def start() -> Supervisor:
        command = worker_process.worker_command(folder)
        supervisor = Supervisor(
            store, folder, command=command, terminate_after_s=0.5, kill_after_s=1.0
        )
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()
