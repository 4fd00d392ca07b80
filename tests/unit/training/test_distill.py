"""Distillation: it learns, adds up batches rightly, stops at NaN, and resumes bit by bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.packing import PackedWeight
from tests.support.helpers import RecordingContext, Stop, examples, stop_after
from upq.config import DistillConfig
from upq.data import Example, collate
from upq.errors import UserError
from upq.layers import INT2, FakeQuantLinear, Grid, Latent, fake_quant_layers, swap_linears
from upq.models import LoadedModel, decoder_blocks, last_hidden, plan_layers
from upq.quantize import checkpoint
from upq.training.distill import Distillation, NoCheckpoints, _passes, distill
from upq.training.teacher import Targets
from upq.training.trainables import trainables

DATA = examples(6)
PASS = sum(len(example.ids) for example in DATA)


def config(**changes: Any) -> DistillConfig:
    defaults = {"tokens": 3 * PASS, "batch_tokens": 48, "weight_lr": 0.05, "scale_lr": 0.01}
    return DistillConfig(**{**defaults, "checkpoint_seconds": 0.0, **changes})


def student_of(teacher: Any, grid: Grid = INT2, group: int = 16) -> Any:
    student = copy.deepcopy(teacher)

    def make(_name: str, linear: nn.Linear) -> FakeQuantLinear:
        scale, _ = grid.fit(linear.weight, group, "absmax")
        return FakeQuantLinear(Latent(linear.weight, scale), linear.bias, grid)

    names = [layer.name for layer in plan_layers(teacher, group) if layer.quantize]
    swap_linears(student, names, make)
    return student


def train(
    teacher: Any, folder: Path, settings: DistillConfig, *, stop_at: int = 10**9, seed: int = 0
) -> tuple[dict[str, PackedWeight], RecordingContext]:
    """Train a fresh student, resuming from what is in folder; raises Stop at check number stop_at."""
    student, context = student_of(teacher), RecordingContext(folder, stop_after(stop_at))
    task = Distillation(student, teacher, DATA, settings, seed)
    try:
        distill(task, context, checkpoint.Steps(folder))
    except Stop:
        return {}, context
    return {name: layer.pack() for name, layer in fake_quant_layers(student)}, context


def same(one: dict[str, PackedWeight], other: dict[str, PackedWeight]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].codes, other[name].codes)
        and torch.equal(one[name].scale, other[name].scale)
        for name in one
    )


def test_a_few_passes_lower_the_loss(tiny: LoadedModel, tmp_path: Path) -> None:
    _, context = train(tiny.model, tmp_path, config(tokens=12 * PASS))
    losses = list(context.curve("jsd").values())
    assert len(losses) >= 36
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


@pytest.mark.parametrize("passes", [1, 2])
def test_a_student_on_a_very_fine_grid_is_the_teacher_and_has_no_loss(
    tiny: LoadedModel, tmp_path: Path, passes: int
) -> None:
    """passes 2 reads the teacher's kept hidden states, 1 computes them where they are used."""
    context = RecordingContext(tmp_path)
    student = student_of(tiny.model, Grid(20))
    settings = config(tokens=passes * PASS, weight_lr=1e-9, scale_lr=1e-9)
    distill(Distillation(student, tiny.model, DATA, settings), context)
    losses = context.curve("jsd").values()
    assert max(losses) < 1e-6


def test_only_weights_and_scales_of_quantized_layers_learn(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    student = student_of(tiny.model)
    before = copy.deepcopy(student.state_dict())
    context = RecordingContext(tmp_path)
    distill(Distillation(student, tiny.model, DATA, config()), context)
    changed = {
        name for name, tensor in student.state_dict().items() if not before[name].equal(tensor)
    }
    learned = {
        f"{name}.{part}"
        for name, _ in fake_quant_layers(student)
        for part in ("weight", "log_scale")
    }
    assert changed == learned


def gradients(teacher: Any, settings: DistillConfig, plan: list[list[int]]) -> tuple[Any, float]:
    """(gradient per parameter, loss) of one optimizer step over the batches of plan."""
    student, data = student_of(teacher), DATA[:2]
    trainables(student, settings)
    context: Any = RecordingContext(Path())
    with _passes(Distillation(student, teacher, data, settings), plan, context) as passes:
        loss, _ = passes.run(plan)
    return {
        n: parameter.grad
        for n, parameter in student.named_parameters()
        if parameter.grad is not None
    }, loss.item()


def test_two_accumulated_sequences_give_the_gradients_of_one_batch(tiny: LoadedModel) -> None:
    together, loss = gradients(tiny.model, config(), [[0, 1]])
    accumulated, same_loss = gradients(tiny.model, config(), [[0], [1]])
    assert len({len(example.ids) for example in DATA[:2]}) == 2, "the sequences differ in length"
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert together.keys() == accumulated.keys()
    assert together
    for name, gradient in together.items():
        torch.testing.assert_close(accumulated[name], gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, (2, 4)),
        ({"accumulation": 2}, (4, 4)),
        ({"tokens": PASS}, (2, 2)),
        ({"optimizer_bits": 8}, (2, 4)),
        ({"norm_lr": 0.01, "weight_lr": 0.0}, (2, 4)),
        ({"checkpointing": True, "teacher": "live"}, (2, 4)),
        ({"weight_unit": "group", "norm_lr": 0.01}, (2, 4)),
    ],
    ids=["plain", "accumulation", "one pass", "8 bits", "norms and scales", "checkpointing", "own"],
)
def test_a_run_stopped_and_resumed_gives_the_bits_of_one_that_was_not(
    tiny: LoadedModel, tmp_path: Path, changes: dict[str, Any], stops: tuple[int, int]
) -> None:
    settings = config(**changes)
    whole, uninterrupted = train(tiny.model, tmp_path / "whole", settings)
    losses = uninterrupted.curve("jsd")
    assert len(losses) >= 3

    points: dict[int, float] = {}
    for checks in stops:  # stopped twice, the second time behind the first checkpoint
        nothing, context = train(tiny.model, tmp_path / "cut", settings, stop_at=checks)
        assert not nothing
        points |= context.curve("jsd")
    assert 0 < len(points) < len(losses)
    resumed, context = train(tiny.model, tmp_path / "cut", settings)
    assert min(context.curve("jsd")) > 0, "it did not start again"
    assert same(whole, resumed)
    assert points | context.curve("jsd") == losses, "no step is missing and none differs"


def test_a_damaged_checkpoint_costs_a_step_and_changes_no_bit(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    whole, _ = train(tiny.model, tmp_path / "whole", config())
    train(tiny.model, tmp_path / "cut", config(), stop_at=5)
    newest = max((tmp_path / "cut").iterdir())
    (newest / checkpoint.STATE).write_text('{"step": 99}')
    assert same(whole, train(tiny.model, tmp_path / "cut", config())[0])


def test_the_seed_decides_the_order_and_nothing_else_does(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    first, _ = train(tiny.model, tmp_path / "a", config())
    assert same(first, train(tiny.model, tmp_path / "b", config())[0])
    assert not same(first, train(tiny.model, tmp_path / "c", config(), seed=1)[0])


def test_the_curves_are_written_out_before_a_checkpoint_is(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    context = RecordingContext(tmp_path)
    saved = []

    class Checkpoints(NoCheckpoints):
        def save(self, step: int, *_: Any) -> None:
            assert context.flushed == len(context.points)
            assert step - 1 in context.curve("jsd")
            saved.append(step)

    task = Distillation(student_of(tiny.model), tiny.model, DATA, config())
    distill(task, context, Checkpoints())
    assert saved == list(range(1, len(context.curve("jsd"))))


def test_the_learning_rate_rises_and_then_falls_along_a_cosine(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    settings = config(tokens=8 * PASS, warmup_share=0.25, weight_lr=0.01)
    _, context = train(tiny.model, tmp_path, settings)
    rates = list(context.curve("lr").values())
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[peak] == pytest.approx(0.01, rel=1e-3)
    assert 0 < rates[-1] < 0.0005
    assert 0.15 < peak / len(rates) < 0.35


def test_too_few_batches_for_the_accumulation_still_make_a_step(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    _, context = train(tiny.model, tmp_path, config(accumulation=64))
    assert list(context.curve("jsd")) == [0]


def test_weights_that_are_not_numbers_stop_the_run_and_name_the_step(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    student = student_of(tiny.model)
    _, layer = next(fake_quant_layers(student))
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    context = RecordingContext(tmp_path)
    with pytest.raises(UserError, match="became nan at step 1") as caught:
        distill(Distillation(student, tiny.model, DATA, config()), context)
    assert caught.value.code == "diverged"
    assert not context.points


def test_teacher_states_kept_from_the_first_pass_are_those_of_every_pass(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    data: list[Example] = DATA[:3]
    plan = [[0, 1], [2], [1, 2], [0]]
    kept = Targets(tiny.model, data, plan, tmp_path)
    fresh = Targets(tiny.model, data, plan[:2], tmp_path)
    filled = Targets(tiny.model, data, plan[:2], tmp_path, eager=True)
    filled.fill(lambda: None)
    assert [kept.keeps_states, fresh.keeps_states, filled.keeps_states] == [True, False, True]
    for rows in plan:
        batch = collate([data[row] for row in rows])
        torch.testing.assert_close(kept.of(rows, batch), fresh.of(rows, batch))
        assert torch.equal(kept.of(rows, batch), filled.of(rows, batch))


@pytest.mark.parametrize(
    "changes", [{"checkpointing": True}, {"teacher": "cached"}], ids=["checkpointing", "cached"]
)
def test_ways_to_save_memory_change_no_bit(
    tiny: LoadedModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain, _ = train(tiny.model, tmp_path / "plain", config())
    saving, _ = train(tiny.model, tmp_path / "saving", config(**changes))
    assert same(plain, saving)


def test_checkpointing_computes_every_block_twice(tiny: LoadedModel) -> None:
    calls: list[str] = []

    def count(*_: Any) -> None:
        calls.append("block")

    for checkpointing, times in ((False, 1), (True, 2)):
        student, settings = student_of(tiny.model), config(checkpointing=checkpointing)
        trainables(student, settings)
        calls.clear()
        blocks = decoder_blocks(student)[1]
        for block in blocks:
            block.get_submodule("mlp").register_forward_pre_hook(count)
        context: Any = RecordingContext(Path())
        task = Distillation(student, tiny.model, DATA, settings)
        with _passes(task, [[0]], context) as passes:
            passes.run([[0]])
        assert len(calls) == times * len(blocks)


def test_a_teacher_whose_states_are_kept_leaves_its_blocks_out_of_the_way(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its states are there nothing asks the teacher's blocks anything, as they may be elsewhere."""
    teacher, student = tiny.model, student_of(tiny.model)
    settings = config(teacher="cached")
    context: Any = RecordingContext(tmp_path)
    trainables(student, settings)
    plan = [[0, 1], [2]]
    with _passes(Distillation(student, teacher, DATA, settings), plan, context) as passes:
        decoder_blocks(teacher)[1].to("meta")
        loss, _ = passes.run(plan)
        decoder_blocks(teacher)[1].to_empty(device="cpu")
    assert loss > 0


def test_next_token_loss_is_the_mean_surprise_of_the_text(tiny: LoadedModel) -> None:
    student, settings = student_of(tiny.model), config(loss="next_token")
    trainables(student, settings)
    context: Any = RecordingContext(Path())
    with _passes(Distillation(student, tiny.model, DATA, settings), [[0, 1]], context) as passes:
        loss, _ = passes.run([[0, 1]])
    mine = {
        n: parameter.grad
        for n, parameter in student.named_parameters()
        if parameter.grad is not None
    }
    batch = collate(DATA[:2])
    hidden = last_hidden(student, batch.ids)[batch.counts]
    expected = nn.functional.cross_entropy(student.get_output_embeddings()(hidden), batch.next_ids)
    for parameter in student.parameters():
        parameter.grad = None
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert mine
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, student.get_parameter(name).grad, atol=1e-6, rtol=1e-3)


def test_next_token_training_lowers_its_loss_and_names_its_curve(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    _, context = train(tiny.model, tmp_path, config(tokens=12 * PASS, loss="next_token"))
    losses = list(context.curve("next_token").values())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert not context.curve("jsd")


def learned(teacher: Any, folder: Path, settings: DistillConfig) -> set[str]:
    """Names of what a training changes in the student."""
    student = student_of(teacher)
    before = copy.deepcopy(student.state_dict())
    distill(Distillation(student, teacher, DATA, settings), RecordingContext(folder))
    assert before.keys() == student.state_dict().keys()
    return {name for name, tensor in student.state_dict().items() if not before[name].equal(tensor)}


def test_scales_alone_can_learn_and_codes_stay(tiny: LoadedModel, tmp_path: Path) -> None:
    before = {name: layer.pack() for name, layer in fake_quant_layers(student_of(tiny.model))}
    after, context = train(tiny.model, tmp_path, config(tokens=8 * PASS, weight_lr=0.0))
    assert before.keys() == after.keys()
    for name, packed in after.items():
        assert torch.equal(packed.codes, before[name].codes)
        assert not torch.equal(packed.scale, before[name].scale)
    losses = list(context.curve("jsd").values())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


def test_norms_can_learn_and_are_plain_norms_afterwards(tiny: LoadedModel, tmp_path: Path) -> None:
    tiny_rates = {"weight_lr": 1e-30, "scale_lr": 0.0}
    changed = learned(tiny.model, tmp_path, config(**tiny_rates, norm_lr=0.01))
    norms = {name for name, parameter in tiny.model.named_parameters() if parameter.ndim == 1}
    assert changed == norms
    assert len(norms) == 5


@pytest.mark.parametrize("unit", ["layer", "group"])
def test_weights_move_by_their_layers_mean_step_or_by_that_of_their_own_group(
    tiny: LoadedModel, tmp_path: Path, unit: str
) -> None:
    """Adam's first step is its rate, whatever the gradient's size."""
    student, rate = student_of(tiny.model), 0.01
    layers = dict(fake_quant_layers(student))
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    steps = {name: layer.log_scale.detach().exp() for name, layer in layers.items()}
    once: dict[str, Any] = {"tokens": PASS, "batch_tokens": 2 * PASS, "warmup_share": 0.0}
    settings = config(**once, weight_lr=rate, scale_lr=0.0, weight_unit=unit)
    distill(Distillation(student, tiny.model, DATA, settings), RecordingContext(tmp_path))
    assert dict(fake_quant_layers(student)).keys() == layers.keys()
    for name, layer in fake_quant_layers(student):
        assert isinstance(layer.weight, nn.Parameter), "it is a plain weight again"
        step = steps[name] if unit == "group" else steps[name].mean().expand_as(steps[name])
        assert steps[name].std() > 0.1 * steps[name].mean(), "which of the two it is shows"
        moved = (layer.weight.detach() - before[name]).abs().view(*step.shape, -1)
        moved /= step.unsqueeze(-1)
        assert moved.max() == pytest.approx(rate, rel=1e-3)
        assert moved.median() == pytest.approx(rate, rel=0.02)


def test_nothing_to_train_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train nothing") as caught:
        train(tiny.model, tmp_path, config(weight_lr=0.0, scale_lr=0.0))
    assert caught.value.code == "bad_config"
