"""The table of grids and rotations: each row is a run of its own, and says what the run came to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import grids
from upq.jobs import shipped
from upq.store import open_store


def test_every_row_is_another_run_that_can_be_made() -> None:
    configs = [grids.config("quick", name).to_json() for name in grids.ROWS]
    assert len(set(configs)) == len(grids.ROWS)


@pytest.mark.slow
def test_a_run_becomes_a_row(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    number = shipped.add_to(store)
    assert number is not None
    run = store.run(number)
    row = grids.row(store, "shipped", run)
    assert row["INT2 bits"] < row["INT4 bits"] < 5
    assert "GGUF" in row["INT2 leaves as"]
    speeds = grids.tokens_per_s(store, {"shipped": run})
    assert speeds.keys() == {"FP16", "shipped"}
    assert speeds["shipped"].keys() == {"INT4 tokens/s", "INT2 tokens/s"}
    store.close()
