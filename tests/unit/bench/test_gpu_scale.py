"""The benchmark of large models runs on tiny shapes and multiplies up what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_decode, gpu_scale


def test_it_measures_every_stage_on_tiny_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "scale.json"
    arguments = ["gpu_scale", "--device", "cpu", "--tiny", "--json", str(target)]
    monkeypatch.setattr("sys.argv", arguments)
    gpu_scale.main()
    rows = json.loads(target.read_text(encoding="utf-8"))["rows"]
    labels = [one[0] for one in (*gpu_scale.STAGES, *gpu_scale.DISTILLATIONS)]
    assert [row["stage"] for row in rows] == labels
    assert all(row["hours"] > 0 and row["s per block or step"] > 0 for row in rows)
    by_stage = {row["stage"]: row for row in rows}
    block_ap = by_stage["Block-AP, INT2"]
    assert block_ap["tokens"] == 4096 * 2048, "EfficientQAT's calibration data"
    assert block_ap["hours"] == pytest.approx(
        gpu_decode.TINY.num_hidden_layers * block_ap["s per block or step"] / 3600
    )
    assert block_ap["CPU or disk GB"] == pytest.approx(4096 * 2048 * 128 * 2 * 2 / 1e9)
