"""A really running app on a temporary data folder, shared by the API and browser tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.studio import Studio, start_app, stop_app


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("lab")
    url, process = start_app(folder)
    yield Studio(url, folder, tiny_model_dir, process)
    if process.poll() is None:
        stop_app(process)
