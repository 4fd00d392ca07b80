"""Curves whose numbers arrive late, as those of a GPU do: none is lost, and nothing is saved from a diverged state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.helpers import RecordingContext
from tests.unit.training.test_distill import DATA, config, student_of
from upq.errors import UserError
from upq.layers import fake_quant_layers
from upq.models import LoadedModel
from upq.training import curves
from upq.training.curves import Curves, Step
from upq.training.distill import Distillation, NoCheckpoints, distill


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves._Numbers, "are_here", False)


def enter(many: Curves, index: int, loss: float) -> None:
    many.enter(Step(index, 0.1, 64, 0.0, index + 1), torch.tensor(loss), torch.tensor(2.0))


def test_a_step_is_reported_when_the_next_one_is_there(late: None, tmp_path: Path) -> None:
    context = RecordingContext(tmp_path)
    many = Curves(context, "int4", "jsd")
    for index in range(3):
        enter(many, index, 0.5 + index)
        many.report()
        assert list(context.curve("int4_jsd")) == list(range(index))
    many.settle()
    assert context.curve("int4_jsd") == {0: 0.5, 1: 1.5, 2: 2.5}
    assert context.curve("int4_grad_norm") == dict.fromkeys(range(3), 2.0)
    assert context.curve("int4_distill_tokens") == dict.fromkeys(range(3), 64)


def test_without_delay_a_step_is_reported_and_checked_at_once(tmp_path: Path) -> None:
    context = RecordingContext(tmp_path)
    many = Curves(context, "int2", "jsd")
    enter(many, 0, 0.5)
    many.report()
    assert context.curve("jsd") == {0: 0.5}
    with pytest.raises(UserError, match="became inf at step 2"):
        enter(many, 1, float("inf"))


def test_a_loss_that_is_no_number_is_found_a_step_later(late: None, tmp_path: Path) -> None:
    for settles in (False, True):
        many = Curves(RecordingContext(tmp_path), "int2", "jsd")
        enter(many, 0, float("nan"))
        many.report()
        enter(many, 1, float("nan"))
        with pytest.raises(UserError, match="became nan at step 1"):
            many.settle() if settles else many.report()


class ChecksCurves(NoCheckpoints):
    """Wants the curves to reach as far as a step that is saved."""

    def __init__(self, context: RecordingContext) -> None:
        self.context = context

    def save(self, step: int, *_: Any) -> None:
        assert max(self.context.curve("jsd")) == step - 1


def test_late_numbers_give_the_curves_of_early_ones(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for is_late in (False, True):
        if is_late:
            monkeypatch.setattr(curves._Numbers, "are_here", False)
        context = RecordingContext(tmp_path)

        distill(
            Distillation(student_of(tiny.model), tiny.model, DATA, config()),
            context,
            ChecksCurves(context),
        )
        found.append([context.curve(name) for name in ("jsd", "grad_norm", "lr")])
    assert found[0] == found[1]


def test_a_diverged_state_is_neither_saved_nor_probed(
    late: None, tiny: LoadedModel, tmp_path: Path
) -> None:
    student, probed = student_of(tiny.model), []
    _, layer = next(fake_quant_layers(student))
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    context = RecordingContext(tmp_path)

    class Checkpoints(NoCheckpoints):
        def save(self, *_: Any) -> None:
            pytest.fail("the weights are not numbers")

    task = Distillation(student, tiny.model, DATA, config())
    with pytest.raises(UserError, match="became nan at step 1"):
        distill(task, context, Checkpoints(), probed.append)
    assert probed == [0]
    assert not context.points
