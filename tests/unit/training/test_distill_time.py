"""A distillation fills its time, ends with it, and keeps its last step where it is interrupted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.helpers import RecordingContext, Stop, stop_after
from tests.unit.training.test_distill import DATA, config, same, student_of, train
from upq.errors import Interrupted
from upq.models import LoadedModel
from upq.quantize import checkpoint
from upq.training.distill import UNTIL, Distillation, distill


def test_a_distillation_fills_its_seconds_and_its_rates_fall_with_the_time(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    train(tiny.model, tmp_path / "warm", config())
    started = time.monotonic()
    settings = config(tokens=10**6, seconds=3.0, warmup_share=0.2, checkpoint_seconds=100.0)
    _, context = train(tiny.model, tmp_path, settings)
    assert 2.9 <= time.monotonic() - started <= 6.0, "the last step and the preparations included"
    rates = list(context.curve("lr").values())
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.1 * max(rates)
    assert context.stages[-1] == ("int2_distill", 1000)


def test_a_distillation_with_enough_seconds_ends_with_its_tokens(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    _, context = train(tiny.model, tmp_path, config(seconds=1000.0))
    _, plain = train(tiny.model, tmp_path / "plain", config())
    assert context.curve("jsd").keys() == plain.curve("jsd").keys()


def test_the_time_that_a_machine_is_there_ends_a_distillation_too(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UNTIL, str(time.time() + 2))
    started = time.monotonic()
    train(tiny.model, tmp_path, config(tokens=10**6, seconds=1000.0, checkpoint_seconds=100.0))
    assert time.monotonic() - started < 6


def test_an_interrupted_distillation_keeps_its_last_step_and_goes_on_bit_by_bit(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    settings = config(checkpoint_seconds=1000.0)
    whole, _ = train(tiny.model, tmp_path / "whole", settings)
    folder, student = tmp_path / "cut", student_of(tiny.model)
    checks = stop_after(3)

    def interrupt() -> None:
        try:
            checks()
        except Stop as error:
            raise Interrupted from error

    context = RecordingContext(folder, interrupt)
    task = Distillation(student, tiny.model, DATA, settings)
    with pytest.raises(Interrupted):
        distill(task, context, checkpoint.Steps(folder))
    assert [one.name for one in folder.glob("step-*")] == ["step-00000002"]
    resumed, _ = train(tiny.model, folder, settings)
    assert same(whole, resumed)
