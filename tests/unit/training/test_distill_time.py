"""A distillation fills its time, ends with it, and keeps its last step where it is interrupted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class SlowCheckpoints(checkpoint.Steps):
    """Checkpoints that take longer to save than a twentieth of six seconds."""

    seconds: float = 0.4

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        time.sleep(self.seconds)
        super().save(step, tensors, state)


def slow_probe(_: int) -> None:
    time.sleep(0.5)


def taken(context: RecordingContext, teacher: Any, seconds: float, left: float = 0.0) -> None:
    """Distill for so many seconds; it has to take as many (or those `left` to it), a twentieth or a step aside."""
    settings = config(tokens=10**7, seconds=seconds, checkpoint_seconds=0.9)
    task = Distillation(student_of(teacher), teacher, DATA, settings)
    started = time.monotonic()
    distill(task, context, SlowCheckpoints(context.checkpoint_dir), slow_probe)
    found = time.monotonic() - started
    a_step = (
        max(len(example.ids) for example in DATA) * 2 / min(context.curve("tokens_per_s").values())
    )
    assert found == pytest.approx(left or seconds, abs=0.05 * seconds + a_step)


@pytest.mark.parametrize("seconds", [6.0, pytest.param(12.0, marks=pytest.mark.slow)])
def test_the_seconds_hold_with_all_that_is_measured_and_saved(
    tiny: LoadedModel, tmp_path: Path, seconds: float
) -> None:
    train(tiny.model, tmp_path / "warm", config())
    taken(RecordingContext(tmp_path / "run"), tiny.model, seconds)


def test_what_cannot_be_saved_in_time_is_not_saved(tiny: LoadedModel, tmp_path: Path) -> None:
    """A first save ends at 3.8 seconds, and a second one would not end before 7.6."""
    settings = config(tokens=10**6, seconds=6.0, checkpoint_seconds=1.8)
    task = Distillation(student_of(tiny.model), tiny.model, DATA, settings)
    started = time.monotonic()
    distill(task, RecordingContext(tmp_path), SlowCheckpoints(tmp_path, seconds=2.0))
    assert time.monotonic() - started == pytest.approx(6.0, abs=0.5)
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_the_seconds_hold_where_the_first_step_is_slow(tiny: LoadedModel, tmp_path: Path) -> None:
    waits = iter([1.5])
    context = RecordingContext(tmp_path, lambda: time.sleep(next(waits, 0.0)))
    taken(context, tiny.model, 6.0)


@pytest.mark.slow
def test_a_resumed_distillation_takes_the_seconds_that_are_left(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    settings = config(tokens=10**7, seconds=8.0, checkpoint_seconds=0.9)
    ends = time.monotonic() + 4.0

    def stop() -> None:
        if time.monotonic() > ends:
            raise Stop

    task = Distillation(student_of(tiny.model), tiny.model, DATA, settings)
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        distill(task, RecordingContext(folder, stop), SlowCheckpoints(folder), slow_probe)
    kept = checkpoint.Steps(folder).load()
    assert kept is not None
    assert 1.0 < kept[1]["seconds"] < 4.5
    taken(RecordingContext(folder), tiny.model, 8.0, left=8.0 - kept[1]["seconds"])


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
