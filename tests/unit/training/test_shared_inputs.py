"""Layers that read the same activations transform them once, and compute what they computed without that."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kernels import transform
from kernels.transform import Transform
from tests.support.helpers import examples
from upq.data import collate
from upq.layers import INT2, FakeQuantLinear, Latent, fake_quant_layers, swap_linears
from upq.models import LoadedModel, last_hidden, plan_layers, recomputed
from upq.training.shared_inputs import shared_inputs

#: Layers that read the same activations have the same signs.
ALIKE = {**dict.fromkeys(("q", "k", "v"), 1), "o": 2, **dict.fromkeys(("gate", "up"), 3), "down": 4}


def rotated(model: Any) -> Any:
    """A copy of the model in training form, its inputs rotated as `upq.training.initialise` does."""
    student = copy.deepcopy(model)

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        weight = linear.weight.detach()
        seed = ALIKE[name.rpartition(".")[2].removesuffix("_proj")]
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (weight.shape[1],), generator=generator) * 2.0 - 1
        around = Transform(16, scale_in=signs)
        return FakeQuantLinear(
            Latent(weight, *INT2.fit(weight, 16), around), linear.bias, INT2
        ).requires_grad_(False)

    swap_linears(student, [layer.name for layer in plan_layers(model, 16) if layer.quantize], make)
    for _, layer in fake_quant_layers(student):
        layer.weight.requires_grad_()
    return student


def passed(student: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states, and gradients of the weights."""
    hidden = last_hidden(student, collate(examples(3)).ids)
    hidden.square().sum().backward()
    found = {
        name: parameter.grad
        for name, parameter in student.named_parameters()
        if parameter.grad is not None
    }
    student.zero_grad(set_to_none=True)
    return hidden.detach(), found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_inputs_give_the_outputs_and_gradients_of_separate_ones(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    student = rotated(tiny.model)
    expected, gradients = passed(student)
    calls: list[int] = []
    once = transform.hadamard

    def counted(values: torch.Tensor, block: int) -> torch.Tensor:
        calls.append(block)
        return once(values, block)

    monkeypatch.setattr(transform, "hadamard", counted)
    layers = [layer for _, layer in fake_quant_layers(student)]
    with shared_inputs(student, torch.float32):
        if checkpointing:
            with recomputed(student):
                found, shared = passed(student)
        else:
            found, shared = passed(student)
        assert all(layer.shared.kept is None for layer in layers if layer.shared)
    # Seven layers of a block have four inputs; the second call of each is that of the outputs, which changes nothing.
    inner = [block for block in calls if block == 16]
    assert len(inner) == 4 * 2 * (2 if checkpointing else 1)
    assert torch.equal(found, expected)
    assert gradients.keys() == shared.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared[name], gradient, rtol=1e-4, atol=1e-5)
    assert all(layer.shared is None for layer in layers)


def test_layers_with_other_signs_or_with_signs_that_are_trained_share_nothing(
    tiny: LoadedModel,
) -> None:
    student = rotated(tiny.model)
    layers = dict(fake_quant_layers(student))
    trained = layers["model.layers.0.self_attn.k_proj"]
    assert trained.scale_in is not None
    trained.scale_in.requires_grad_()
    with shared_inputs(student, torch.float32):
        assert trained.shared is None
        query, value = (layers[f"model.layers.0.self_attn.{one}_proj"].shared for one in "qv")
        assert query is value
        assert query is not None
        assert query.readers == 2
        assert query is not layers["model.layers.0.self_attn.o_proj"].shared
        assert query is not layers["model.layers.1.self_attn.q_proj"].shared


def test_other_inputs_and_another_mode_are_transformed_anew(tiny: LoadedModel) -> None:
    student = rotated(tiny.model)
    layers = dict(fake_quant_layers(student))
    query, key = (layers[f"model.layers.0.self_attn.{one}_proj"] for one in "qk")
    one, other = torch.randn(2, 3, 64)
    expected = [query(one), key(other), query(one), key(one)]
    with shared_inputs(student, torch.float32):
        found = [query(one), key(other)]
        with torch.no_grad():
            found.append(query(one))
        found.append(key(one))
        assert found[-1].requires_grad
    assert all(map(torch.equal, found, expected))
