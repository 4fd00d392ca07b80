"""Where layers start: shared statistics and rotations, Hessians of real tokens, and rotations that change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.support.families import family_model
from tests.support.helpers import examples
from upq.config import BlockwiseConfig, Int2Config
from upq.data import Batch, collate
from upq.layers import INT2, INT4, Form, Forms
from upq.models import LoadedModel, decoder_blocks
from upq.models.structure import block_linears
from upq.training.initialise import (
    MEASURED_BATCHES,
    Hessian,
    InputStatistics,
    initial_latents,
    input_statistics,
)
from upq.training.streams import Streams

CPU = torch.device("cpu")
ATTENTION = [f"self_attn.{name}_proj" for name in "qkv"]
READERS = [
    ATTENTION,
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]


def batches(count: int) -> list[Batch]:
    """Sequences of different lengths, so that there is padding."""
    made = examples(3 * count)
    return [collate(made[start : start + 3]) for start in range(0, len(made), 3)]


def entered(model: Any, data: list[Batch], folder: Path) -> Streams:
    return Streams.enter(model, data, CPU, folder, 2**30)


def statistics(
    tiny: LoadedModel, folder: Path, count: int, hessian: Hessian | None
) -> list[InputStatistics]:
    block = decoder_blocks(tiny.model)[1][0]
    streams = list(entered(tiny.model, batches(count), folder))
    return input_statistics(block, list(block_linears(block)), streams, 0, hessian)


def naive_inputs(model: Any, name: str, data: list[Batch]) -> torch.Tensor:
    """(real tokens, in): what a layer of the first block reads of sequences that run alone, without padding."""
    seen: list[torch.Tensor] = []
    linear = decoder_blocks(model)[1][0].get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for batch in data:
        for row in range(len(batch.ids)):
            with torch.no_grad():
                model(input_ids=batch.ids[row : row + 1, : int(batch.real[row].sum())])
    handle.remove()
    return torch.cat(seen)


def test_layers_that_read_one_tensor_share_its_statistics(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    assert [one.names for one in statistics(tiny, tmp_path, 2, "plain")] == READERS


@pytest.mark.parametrize("hessian", ["plain", "normalized"])
@pytest.mark.parametrize("group", range(len(READERS)))
def test_the_hessian_counts_each_real_token_of_all_batches(
    tiny: LoadedModel, tmp_path: Path, group: int, hessian: Hessian
) -> None:
    count = MEASURED_BATCHES + 1
    found = statistics(tiny, tmp_path, count, hessian)[group]
    inputs = naive_inputs(tiny.model, found.names[0], batches(count)).double()
    rows = inputs / inputs.norm(dim=1, keepdim=True) if hessian == "normalized" else inputs
    assert found.hessian is not None
    assert found.power is not None
    torch.testing.assert_close(found.hessian.double(), rows.T @ rows, atol=1e-3, rtol=1e-4)
    power = inputs.square().sum(0).float()
    torch.testing.assert_close(found.power, power, atol=1e-4, rtol=1e-5)


def test_without_a_hessian_a_few_batches_tell_the_power(tiny: LoadedModel, tmp_path: Path) -> None:
    few = statistics(tiny, tmp_path, MEASURED_BATCHES, None)[0]
    more = statistics(tiny, tmp_path, MEASURED_BATCHES + 2, None)[0]
    assert few.hessian is None
    assert few.power is not None
    assert more.power is not None
    assert torch.equal(few.power, more.power)
    inputs = naive_inputs(tiny.model, ATTENTION[0], batches(MEASURED_BATCHES))
    torch.testing.assert_close(few.power, inputs.square().sum(0), atol=1e-4, rtol=1e-4)


CALIBRATED = BlockwiseConfig(tokens=1)
CONFIGS = {
    "input": Int2Config(group_size=16, rotation="input", blockwise=CALIBRATED),
    "both": Int2Config(group_size=16, rotation="both", rotation_block=16, blockwise=CALIBRATED),
    "rounded": Int2Config(group_size=16, rotation="both", rounding="ldlq", blockwise=CALIBRATED),
    "lattice": Int2Config(
        group_size=0, rotation="both", rounding="ldlq", codebook="lattice", blockwise=CALIBRATED
    ),
    "unrotated lattice": Int2Config(
        group_size=0, rounding="ldlq", codebook="lattice", blockwise=CALIBRATED
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_before_rounding_a_surrounded_layer_gives_its_own_outputs(
    tiny: LoadedModel, config: Int2Config
) -> None:
    """Inputs that have nothing in common carry no error on, so latent weights are the turned ones, LDLQ or not."""
    linears = block_linears(decoder_blocks(tiny.model)[1][0])
    weights = {name: linear.weight.detach() for name, linear in linears.items()}
    shared = [
        InputStatistics(names, hessian=torch.eye(weights[names[0]].shape[1])) for names in READERS
    ]
    latents = initial_latents(weights, shared, Forms(Form(INT4, config.group_size)), config, seed=3)
    for name, latent in latents.items():
        inputs = torch.randn(5, weights[name].shape[1])
        assert latent.transform is not None
        values, added = latent.transform.inputs(inputs)
        outputs = latent.transform.outputs(F.linear(values, latent.weight), added)
        torch.testing.assert_close(outputs, linears[name](inputs), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(latent.weight, weights[name], atol=1e-2), "it was turned"


def test_layers_that_read_one_tensor_share_its_signs_and_others_do_not(
    tiny: LoadedModel,
) -> None:
    block = decoder_blocks(tiny.model)[1][0]
    weights = {name: linear.weight.detach() for name, linear in block_linears(block).items()}
    shared = [InputStatistics(names) for names in READERS]
    config = Int2Config(group_size=16, rotation="both", blockwise=BlockwiseConfig(tokens=0))
    latents = initial_latents(weights, shared, Forms(Form(INT2, config.group_size)), config, seed=0)
    signs = {
        name: latent.transform.scale_in for name, latent in latents.items() if latent.transform
    }
    assert all(one is not None and set(one.tolist()) == {-1.0, 1.0} for one in signs.values())
    for names in READERS:
        assert all(torch.equal(signs[name], signs[names[0]]) for name in names)  # type: ignore[arg-type]
    assert not torch.equal(signs["self_attn.q_proj"], signs["mlp.up_proj"])  # type: ignore[arg-type]
    assert not torch.equal(signs["self_attn.q_proj"], signs["self_attn.o_proj"])  # type: ignore[arg-type]
    again = initial_latents(weights, shared, Forms(Form(INT2, config.group_size)), config, seed=0)
    other = initial_latents(weights, shared, Forms(Form(INT2, config.group_size)), config, seed=1)
    for name, one in latents.items():
        assert torch.equal(one.weight, again[name].weight)
        assert not torch.equal(one.weight, other[name].weight), "another block, other signs"


def test_without_data_each_layer_is_on_its_own_and_scales_come_from_the_weights(
    tiny: LoadedModel,
) -> None:
    block = decoder_blocks(tiny.model)[1][0]
    weights = {name: linear.weight.detach() for name, linear in block_linears(block).items()}
    shared = input_statistics(block, list(weights), [], 0, None)
    assert shared == [InputStatistics([name]) for name in weights]
    config = Int2Config(group_size=16, blockwise=BlockwiseConfig(tokens=0))
    for name, latent in initial_latents(
        weights, shared, Forms(Form(INT4, config.group_size)), config, seed=0
    ).items():
        assert torch.equal(latent.weight, weights[name])
        assert torch.equal(latent.scale, INT4.fit(weights[name], 16)[0])
        assert latent.transform is None


def test_statistics_of_a_layer_that_reads_one_long_row_leave_out_padding(tmp_path: Path) -> None:
    model, data = family_model("opt"), batches(2)
    streams = list(entered(model, data, tmp_path))
    (found,) = input_statistics(decoder_blocks(model)[1][0], ["fc1"], streams, 0, "plain")
    seen: list[torch.Tensor] = []
    layer = decoder_blocks(model)[1][0].get_submodule("fc1")
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in data:
            for row in range(len(batch.ids)):
                model(input_ids=batch.ids[row : row + 1, : int(batch.real[row].sum())])
    inputs = torch.cat(seen)
    assert inputs.dim() == 2
    assert found.hessian is not None
    torch.testing.assert_close(found.hessian, inputs.T @ inputs, atol=1e-3, rtol=1e-4)
