"""Block-wise reconstruction: it lowers errors, looks through the quantized prefix, and resumes bit by bit."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kernels.reference import weight_of
from tests.support.helpers import RecordingContext, Stop, examples
from upq.config import BlockwiseConfig, Int2Config
from upq.data import Batch, collate
from upq.errors import UserError
from upq.layers import INT2, INT4, FakeQuantLinear, Form, Forms, Grid, Latent, swap_linears
from upq.models import LoadedModel, decoder_blocks
from upq.models.structure import block_linears
from upq.training import BlockResult, Reconstruction, reconstruct

TRAINING = BlockwiseConfig(tokens=1, epochs=6, weight_lr=0.05, scale_lr=0.01)


def batches(count: int = 3) -> list[Batch]:
    made = examples(4 * count)
    return [collate(made[start : start + 4]) for start in range(0, len(made), 4)]


def weights(model: Any) -> dict[str, torch.Tensor]:
    prefix, blocks = decoder_blocks(model)
    return {
        f"{prefix}.{index}.{name}": linear.weight.detach()
        for index, block in enumerate(blocks)
        for name, linear in block_linears(block).items()
    }


@dataclass
class Kept:
    """Checkpoints in a dictionary; `by` saves in the place of it."""

    results: dict[int, BlockResult]
    by: Callable[[int, BlockResult], None] | None = None

    def load(self, index: int) -> BlockResult | None:
        return self.results.get(index)

    def save(self, index: int, result: BlockResult) -> None:
        (self.by or self.results.__setitem__)(index, result)


def run(
    model: Any,
    data: list[Batch],
    folder: Path,
    grid: Grid = INT2,
    training: BlockwiseConfig = TRAINING,
    saved: dict[int, BlockResult] | None = None,
    scale_init: str = "absmax",
    save: Callable[[int, BlockResult], None] | None = None,
) -> tuple[dict[str, Latent], RecordingContext]:
    context = RecordingContext(folder)
    config = Int2Config(group_size=16, scale_init=scale_init, blockwise=training)  # type: ignore[arg-type]
    task = Reconstruction(
        model, "int2", Forms(Form(grid, config.group_size)), config, weights(model)
    )
    result = reconstruct(task, data, context, Kept({} if saved is None else saved, save))
    return result.layers, context


@pytest.mark.parametrize("grid", [INT4, INT2], ids=["INT4", "INT2"])
def test_training_lowers_the_error_of_every_block(
    tiny: LoadedModel, tmp_path: Path, grid: Grid
) -> None:
    training = TRAINING if grid is INT2 else BlockwiseConfig(tokens=1, epochs=6, weight_lr=0.05)
    _, context = run(tiny.model, batches(), tmp_path, grid, training)
    before, after = context.curve("int2_block_before"), context.curve("int2_block_after")
    assert before.keys() == after.keys() == {0, 1}
    assert all(0 < after[block] < before[block] for block in before)
    assert context.steps == [("", 1), ("", 2)]


def test_the_model_stays_as_it_is(tiny: LoadedModel, tmp_path: Path) -> None:
    before = copy.deepcopy(tiny.model.state_dict())
    run(tiny.model, batches(1), tmp_path)
    after = tiny.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_batches_scales_are_fitted_and_weights_kept(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    result, _ = run(tiny.model, [], tmp_path, INT4, scale_init="search")
    for name, weight in weights(tiny.model).items():
        assert torch.equal(result[name].weight, weight)
        torch.testing.assert_close(result[name].scale, INT4.fit(weight, 16)[0])


def test_no_epochs_turn_training_off(tiny: LoadedModel, tmp_path: Path) -> None:
    result, _ = run(tiny.model, batches(1), tmp_path, training=BlockwiseConfig(epochs=0))
    for name, weight in weights(tiny.model).items():
        assert torch.equal(result[name].weight, weight)


def quantized_model(model: Any, latents: dict[str, Latent], blocks: int) -> Any:
    """A copy of the model in which the linears of the first blocks hold what is stored."""
    twin = copy.deepcopy(model)
    for name, latent in latents.items():
        if int(name.split(".")[2]) < blocks:
            twin.get_submodule(name).weight.data = weight_of(latent.pack(INT2))
    return twin


def block_states(model: Any, index: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(what enters block `index` of the running model, what leaves it)."""
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.extend([inputs[0], output])

    handle = decoder_blocks(model)[1][index].register_forward_hook(hook)
    with torch.no_grad():
        model(input_ids=batch.ids, use_cache=False)
    handle.remove()
    return seen[0], seen[1]


def relative_error(output: torch.Tensor, target: torch.Tensor, real: torch.Tensor) -> float:
    losses = [
        ((output[row, at] - target[row, at]).square().sum() / target[row, at].square().sum()).item()
        for row, at in real.nonzero().tolist()
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("index", [0, 1])
def test_a_block_reads_the_quantized_prefix_and_aims_at_the_fp16_output(
    tiny: LoadedModel, tmp_path: Path, index: int
) -> None:
    """The logged errors are those of whole models that run naively, the first `index` blocks quantized."""
    data = batches(1)
    result, context = run(tiny.model, data, tmp_path)
    _, target = block_states(tiny.model, index, data[0])
    for series, done in (("before", index), ("after", index + 1)):
        model = quantized_model(tiny.model, result, done)
        if series == "before":  # the block itself is rounded to nearest before it trains
            here = {
                name: Latent(weight, *INT2.fit(weight, 16, "absmax"))
                for name, weight in weights(tiny.model).items()
                if name.split(".")[2] == str(index)
            }
            model = quantized_model(model, here, index + 1)
        _, output = block_states(model, index, data[0])
        logged = context.curve(f"int2_block_{series}")[index]
        assert logged == pytest.approx(relative_error(output, target, data[0].real), rel=2e-2)


def test_the_first_block_reads_the_same_in_both_streams_and_the_second_does_not(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    data = batches(1)
    result, _ = run(tiny.model, data, tmp_path)
    quantized = quantized_model(tiny.model, result, 1)
    reads = [block_states(model, 1, data[0])[0] for model in (tiny.model, quantized)]
    assert (reads[0] - reads[1]).abs().max() > 1e-3


def test_a_resumed_run_gives_the_same_bits(tiny: LoadedModel, tmp_path: Path) -> None:
    whole, _ = run(tiny.model, batches(), tmp_path)
    saved: dict[int, BlockResult] = {}

    def save_and_stop(index: int, result: BlockResult) -> None:
        saved[index] = result
        raise Stop

    with pytest.raises(Stop):
        run(tiny.model, batches(), tmp_path, saved=saved, save=save_and_stop)
    assert list(saved) == [0]
    resumed, context = run(tiny.model, batches(), tmp_path, saved=saved)
    assert list(saved) == [0, 1]
    assert whole.keys() == resumed.keys()
    for name, latent in whole.items():
        pairs = zip(latent.tensors().values(), resumed[name].tensors().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert context.curve("int2_block_after").keys() == {0, 1}, "the curve has no hole"


def test_what_is_kept_of_a_block_is_what_was_saved_and_read_again(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    saved: dict[int, BlockResult] = {}

    def save_copies(index: int, result: BlockResult) -> None:
        saved[index] = copy.deepcopy(result)

    layers, _ = run(tiny.model, batches(), tmp_path, saved=saved, save=save_copies)
    prefix, _ = decoder_blocks(tiny.model)
    again = {
        f"{prefix}.{index}.{name}": latent
        for index, result in saved.items()
        for name, latent in result.layers.items()
    }
    assert layers.keys() == again.keys()
    assert all(layers[name] is latent for name, latent in again.items()), "not the first copy"


def test_padding_has_no_part_in_the_error(tiny: LoadedModel, tmp_path: Path) -> None:
    (batch,) = batches(1)
    wider = Batch(
        *(nn.functional.pad(tensor, (0, 7)) for tensor in (batch.ids, batch.real, batch.counts))
    )
    errors = [run(tiny.model, [one], tmp_path)[1].points for one in (batch, wider)]
    for ours, theirs in zip(*errors, strict=True):
        assert ours[2] == pytest.approx(theirs[2], rel=1e-3)


def test_a_block_that_diverges_is_named(tiny: LoadedModel, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="Block 1 gave a non-finite error") as caught:
        run(tiny.model, batches(1), tmp_path)
    assert caught.value.code == "diverged"


def test_a_bias_is_carried_through(tiny: LoadedModel, tmp_path: Path) -> None:
    linear = tiny.model.model.layers[0].self_attn.q_proj
    linear.bias = nn.Parameter(torch.ones(64), requires_grad=False)
    twin = copy.deepcopy(tiny.model)
    twin.model.layers[0].self_attn.q_proj.bias = None
    errors = [
        run(model, batches(1), tmp_path, training=BlockwiseConfig(epochs=0))[1].points
        for model in (tiny.model, twin)
    ]
    assert errors[0] != errors[1]
    latent = Latent(linear.weight, *INT2.fit(linear.weight, 16))
    kept = FakeQuantLinear(latent, linear.bias, INT2)
    swap_linears(tiny.model, ["model.layers.0.self_attn.q_proj"], lambda *_: kept)
    assert torch.equal(tiny.model.model.layers[0].self_attn.q_proj.bias, torch.ones(64))
