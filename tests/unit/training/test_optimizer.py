"""AdamW with 8-bit moments: small, close to the exact one, and its rounding keeps the mean."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.host_reads import Reads
from upq.training.adamw8bit import BLOCK, AdamW8bit, _decode, _encode
from upq.training.trainables import RATE_RATIO, shared_rates


def descend(optimizer_of: type, steps: int, size: int = 1000) -> tuple[torch.Tensor, nn.Parameter]:
    """(losses, parameter) of a noisy quadratic with very different curvatures."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(size, generator=generator))
    goal = torch.randn(size, generator=generator)
    curvature = torch.logspace(-3, 1, size)
    optimizer = optimizer_of([{"params": [parameter], "lr": 0.02}], weight_decay=0.01)
    losses = []
    for _ in range(steps):
        noise = 0.1 * torch.randn(size, generator=generator)
        loss = (curvature * (parameter - goal + noise).square()).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses), parameter


def test_it_descends_like_adamw() -> None:
    exact, _ = descend(torch.optim.AdamW, 200)
    ours, _ = descend(AdamW8bit, 200)
    assert exact[-1] < 0.05 * exact[0]
    torch.testing.assert_close(ours, exact, rtol=0.05, atol=0.02 * float(exact[0]))


def test_the_first_step_is_that_of_adamw() -> None:
    _, exact = descend(torch.optim.AdamW, 1)
    _, ours = descend(AdamW8bit, 1)
    torch.testing.assert_close(ours, exact)


def stepping(optimizer: AdamW8bit, count: int, seed: int = 4) -> None:
    """So many steps with random gradients; those of parameters are in their own type."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_a_step_waits_for_no_device() -> None:
    parameters = [nn.Parameter(torch.ones(3, 700)), nn.Parameter(torch.ones(5))]
    optimizer = AdamW8bit([{"params": parameters}], weight_decay=0.1)
    stepping(optimizer, 1)
    with Reads() as reads:
        stepping(optimizer, 3)
    assert reads.found == []
    with reads:
        assert parameters[0].sum().item() != 0
    assert reads.found == ["_local_scalar_dense"], "it would be seen"


def test_a_step_is_what_its_definition_says_also_after_it_was_resumed() -> None:
    """The definition reads the number of the step from the state, as the optimizer did before."""
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(700, generator=generator)
    ours, expected = nn.Parameter(start.clone()), start.clone()
    optimizer = AdamW8bit([{"params": [ours], "lr": 0.02}], weight_decay=0.1)
    first = second = torch.zeros(len(start))
    gradients = torch.Generator().manual_seed(4)
    for step in range(1, 7):
        if step == 4:
            kept = dict(optimizer.state[ours])
            optimizer = AdamW8bit([{"params": [ours], "lr": 0.02}], weight_decay=0.1)
            optimizer.state[ours] = kept
        gradient = torch.randn(start.shape, generator=gradients)
        ours.grad = gradient.clone()
        optimizer.step()
        source = torch.Generator().manual_seed(step)
        first = torch.lerp(first, gradient, 1 - 0.9)
        second = (second * 0.999).addcmul(gradient, gradient, value=1 - 0.999)
        corrected = (second / (1 - 0.999**step)).sqrt() + 1e-8
        expected = (expected * (1 - 0.02 * 0.1)).addcdiv(
            first, corrected, value=-0.02 / (1 - 0.9**step)
        )
        codes, unit = _encode(first, 127, 2, source)
        first = _decode(codes, unit, len(start), 2)
        codes, unit = _encode(second, 255, 4, source)
        second = _decode(codes.clamp_min(1), unit, len(start), 4)
        assert torch.equal(ours.detach(), expected), step


def test_the_state_takes_two_bytes_a_value() -> None:
    parameter = nn.Parameter(torch.randn(64, 4096))
    optimizer = AdamW8bit([{"params": [parameter]}])
    parameter.sum().backward()
    optimizer.step()
    size = sum(one.numel() * one.itemsize for one in optimizer.state[parameter].values())
    assert size / parameter.numel() == pytest.approx(2 + 8 / BLOCK, rel=1e-3)


@pytest.mark.parametrize(("levels", "power"), [(127, 2), (255, 4)])
def test_rounding_is_close_and_keeps_the_mean(levels: int, power: int) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(BLOCK + 44, generator=generator) ** 3
    values = values.abs() if power == 4 else values
    draws = []
    for _ in range(2000):
        codes, unit = _encode(values, levels, power, generator)
        assert codes.numel() == 2 * BLOCK
        draws.append(_decode(codes, unit, len(values), power))
    mean = torch.stack(draws).double().mean(0)
    peak = values.abs().max().item()
    assert (draws[0] - values).abs().max() < 2 * power / levels * peak
    assert ((mean - values).abs() < 0.002 * peak).all()
    relative = ((mean - values) / values).abs()[values.abs() > 1e-3 * peak]
    assert relative.max() < 0.02


def test_zeros_and_single_values_survive() -> None:
    generator = torch.Generator().manual_seed(2)
    for values in (torch.zeros(3), torch.tensor([0.0, -2.5, 0.0])):
        codes, unit = _encode(values, 127, 2, generator)
        torch.testing.assert_close(_decode(codes, unit, 3, 2), values)


def groups_of(rates: list[float]) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"params": [nn.Parameter(torch.randn(8, generator=generator))], "lr": rate}
        for rate in rates
    ]


@pytest.mark.parametrize("seed", range(3))
def test_few_rates_stand_for_many_and_none_changes_by_more_than_its_share(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rates = (1e-5 * torch.rand(200, generator=generator).mul(2).exp()).tolist()
    groups = groups_of(rates)
    joined = shared_rates(groups)
    found = {one: group["lr"] for group in joined for one in group["params"]}
    assert len(joined) < 45
    assert len(found) == sum(len(group["params"]) for group in joined) == 200
    for group in groups:
        assert abs(found[group["params"][0]] / group["lr"] - 1) <= (RATE_RATIO - 1) / 2


def test_a_rate_of_its_own_stays_as_it_is() -> None:
    rates = [3e-4, 1e-3, 0.05]
    assert [group["lr"] for group in shared_rates(groups_of(rates))] == rates


def test_shared_rates_train_like_exact_ones() -> None:
    moved = []
    for share in (list, shared_rates):
        groups = groups_of([1e-3, 1.01e-3, 1.02e-3, 0.1])
        parameters = [group["params"][0] for group in groups]
        before = [one.detach().clone() for one in parameters]
        optimizer = torch.optim.AdamW(share(groups), weight_decay=0.0)
        for _ in range(3):
            torch.cat(parameters).sum().backward()
            optimizer.step()
        moved.append([one.detach() - start for one, start in zip(parameters, before, strict=True)])
    for exact, shared in zip(*moved, strict=True):
        torch.testing.assert_close(shared, exact, rtol=0.026, atol=1e-6)
    assert torch.equal(moved[0][3], moved[1][3])
