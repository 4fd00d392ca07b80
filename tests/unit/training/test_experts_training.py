"""Experts in training: statistics of the tokens routed to each, nearest levels where they are few, resumed runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import family_model
from tests.support.helpers import RecordingContext
from tests.unit.training.test_blockwise import batches, weights
from tests.unit.training.test_distill import config, same, student_of, train
from upq.config import BlockwiseConfig, Int2Config
from upq.data import Batch
from upq.layers import INT4, Form, Forms, fake_quant_layers
from upq.models import decoder_blocks, unstack_experts
from upq.models.experts import RoutedExperts, mixtures
from upq.training import Reconstruction, initialise, reconstruct
from upq.training.initialise import input_statistics
from upq.training.streams import Streams

LDLQ = Int2Config(group_size=16, rounding="ldlq", blockwise=BlockwiseConfig(tokens=1, epochs=0))
LAYER = "mlp.experts.{}.{}_proj"


@pytest.fixture
def mixture() -> Any:
    """A Mixtral with four experts, of which a token meets two."""
    model = family_model("mixtral")
    unstack_experts(model)
    return model


def routed(model: Any, data: list[Batch]) -> dict[int, torch.Tensor]:
    """What each expert of the first block reads of sequences that run alone, without padding."""
    found: dict[int, list[torch.Tensor]] = {number: [] for number in range(4)}
    ((_, experts, _), *_) = mixtures(model)

    def look(_: Any, inputs: Any) -> None:
        hidden, chosen, _ = inputs
        for number, rows in found.items():
            rows.append(hidden[(chosen == number).any(1)])

    handle = experts.register_forward_pre_hook(look)
    with torch.no_grad():
        for batch in data:
            for row in range(len(batch.ids)):
                model(input_ids=batch.ids[row : row + 1, : int(batch.real[row].sum())])
    handle.remove()
    return {number: torch.cat(rows) for number, rows in found.items()}


def test_each_expert_has_statistics_of_the_real_tokens_routed_to_it(
    mixture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initialise, "FEWEST_TOKENS", 1)
    data = batches(2)
    assert not all(batch.real.all() for batch in data), "there is padding to leave out"
    streams = Streams.enter(mixture, data, torch.device("cpu"), tmp_path, 2**30)
    names = [LAYER.format(number, "gate_up") for number in range(4)]
    block = decoder_blocks(mixture)[1][0]
    found = {one.names[0]: one for one in input_statistics(block, names, list(streams), 0, "plain")}
    for number, inputs in routed(mixture, data).items():
        hessian = found[names[number]].hessian
        assert hessian is not None
        torch.testing.assert_close(hessian, inputs.T @ inputs, atol=1e-3, rtol=1e-4)


def reconstructed(model: Any, data: list[Batch], folder: Path) -> tuple[Any, RecordingContext]:
    context = RecordingContext(folder)
    task = Reconstruction(model, "int2", Forms(Form(INT4, LDLQ.group_size)), LDLQ, weights(model))
    return reconstruct(task, data, context).layers, context


def test_an_expert_that_saw_few_tokens_is_rounded_to_nearest_and_named(
    mixture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batches(2)
    counts = {number: len(inputs) for number, inputs in routed(mixture, data).items()}
    fewest = min(counts, key=counts.__getitem__)
    others = sorted(counts.values())[1]
    assert 0 < counts[fewest] < others
    monkeypatch.setattr(initialise, "FEWEST_TOKENS", others)
    monkeypatch.setattr("upq.training.blockwise.FEWEST_TOKENS", others)
    layers, context = reconstructed(mixture, data, tmp_path)
    (line,) = [line for line in context.lines if line.startswith("int2: block 0")]
    assert line.endswith(f"fewer than {others} tokens: mlp.experts.{fewest}")
    for number in counts:
        name = "model.layers.0." + LAYER.format(number, "down")
        weight = mixture.get_parameter(f"{name}.weight")
        is_nearest = torch.allclose(layers[name].weight, weight, atol=1e-6)
        assert is_nearest == (number == fewest)


def test_an_expert_that_saw_nothing_is_rounded_as_well(mixture: Any, tmp_path: Path) -> None:
    for _, experts, _ in mixtures(mixture):
        experts.register_forward_pre_hook(
            lambda _, given: (given[0], torch.zeros_like(given[1][:, :1]), given[2][:, :1])
        )
    layers, context = reconstructed(mixture, batches(3), tmp_path)
    assert all(latent.weight.isfinite().all() for latent in layers.values())
    assert all(" mlp.experts.1, mlp.experts.2, mlp.experts.3" in line for line in context.lines)
    assert len(context.lines) == 2


@pytest.mark.parametrize("bits", [32, 8])
def test_a_distillation_whose_experts_do_not_all_learn_resumes_to_the_bit(
    mixture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """The last expert is never chosen, so its weights have no gradient and the optimizer no state of them."""
    forward = RoutedExperts.forward
    monkeypatch.setattr(
        RoutedExperts,
        "forward",
        lambda self, hidden, index, top: forward(self, hidden, index % 3, top),
    )
    settings = config(optimizer_bits=bits, checkpointing=True)
    whole, _ = train(mixture, tmp_path / "whole", settings)
    train(mixture, tmp_path / "parts", settings, stop_at=5)
    resumed, _ = train(mixture, tmp_path / "parts", settings)
    assert same(whole, resumed)
    plain, _ = train(mixture, tmp_path / "plain", config(optimizer_bits=bits))
    assert same(whole, plain), "routing is the same when a block is computed again"
    start = {name: layer.pack() for name, layer in fake_quant_layers(student_of(mixture))}
    for number, learns in enumerate([True, True, True, False]):
        name = "model.layers.0." + LAYER.format(number, "down")
        assert torch.equal(start[name].codes, whole[name].codes) != learns
