"""What the engine that answers gives stands beside what transformers gives, on the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.helpers import examples
from tests.support.native_cases import quantized
from upq.decode import NativeEngine, native_engine
from upq.errors import UserError
from upq.evaluation import Reference
from upq.evaluation.fidelity import Fidelity
from upq.layers import packed_layers
from upq.models import LoadedModel
from upq.quantize import Yardstick, measure

DATA = examples(7, 30)
#: Rounding activations to 8 bits moves the KL of the tiny model by less, and its top-1 agreement by less.
LARGEST_KL_CHANGE, LARGEST_TOP1_CHANGE = 0.02, 0.05
CPU = torch.device("cpu")


def check() -> None:
    return


def both(tiny: LoadedModel, bits: int, engine: NativeEngine) -> tuple[Fidelity, Fidelity]:
    return Reference(tiny.model, DATA, check).measure_both(
        quantized(tiny.model, bits, 32), engine, check
    )


@pytest.mark.parametrize("bits", [4, 2])
def test_an_engine_with_exact_activations_measures_as_transformers_does(
    tiny: LoadedModel, bits: int
) -> None:
    model = quantized(tiny.model, bits, 32)
    exact, served = both(tiny, bits, NativeEngine(model, exact=True))
    assert exact.kl > 0.01
    alone = Reference(tiny.model, DATA, check).measure(model, check)
    for name in ("kl", "kl_p95", "top1", "ppl", "tokens", "kl_low", "kl_high", "agreed_mean"):
        assert getattr(exact, name) == getattr(alone, name), f"{name} is what it is without engine"
        assert getattr(served, name) == pytest.approx(getattr(exact, name), rel=0.01), name


@pytest.mark.parametrize("bits", [4, 2])
def test_rounded_activations_show_and_cost_little(tiny: LoadedModel, bits: int) -> None:
    exact, served = both(tiny, bits, NativeEngine(quantized(tiny.model, bits, 32)))
    assert 1e-6 < abs(served.kl - exact.kl) < LARGEST_KL_CHANGE
    assert abs(served.top1 - exact.top1) <= LARGEST_TOP1_CHANGE
    assert served.tokens == exact.tokens == sum(one.counted for one in DATA)


def test_an_engine_that_computes_otherwise_shows(tiny: LoadedModel) -> None:
    right, wrong = quantized(tiny.model, 4, 32), quantized(tiny.model, 2, 32)
    exact, served = both(tiny, 4, NativeEngine(wrong))
    assert exact.kl == Reference(tiny.model, DATA, check).measure(right, check).kl
    assert served.kl > exact.kl + LARGEST_KL_CHANGE
    assert served.ppl != exact.ppl


def test_answers_longer_than_a_piece_are_read_whole(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = NativeEngine(quantized(tiny.model, 4, 32))
    _, whole = both(tiny, 4, engine)
    monkeypatch.setattr("upq.evaluation.fidelity.CHUNK_ROWS", 4)
    _, pieces = both(tiny, 4, engine)
    for name in ("kl", "top1", "ppl", "tokens", "agreed_mean"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-5), name


def test_an_engine_without_numbers_is_refused_with_the_block(tiny: LoadedModel) -> None:
    model = quantized(tiny.model, 4, 32)
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    with pytest.raises(UserError, match="decoder block 1") as caught:
        both(tiny, 4, NativeEngine(model))
    assert caught.value.code == "diverged"


class _Artifact:
    """Of an artifact what a measurement reads."""

    precision, size_bytes = "INT4", 1000
    manifest = {"bits_per_weight": 4.5}  # noqa: RUF012


@pytest.fixture
def row(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that measures the tiny model at INT4 as a run does."""
    model: Any = quantized(tiny.model, 4, 32)
    monkeypatch.setattr(measure, "assemble", lambda *_: (copy.deepcopy(model), None))
    monkeypatch.setattr(measure, "serving_device", lambda: CPU)
    yardstick, artifact = Yardstick(tiny.model, DATA, check), _Artifact()

    def measured(**options: bool) -> dict[str, Any]:
        return yardstick.row("INT4", artifact, yardstick.assembled(artifact), **options)  # type: ignore[arg-type]

    return measured


def test_a_row_of_what_answers_has_both_figures_and_names_the_engine(
    row: Callable[..., dict[str, Any]],
) -> None:
    found = row(answers=True)
    assert 0 < abs(found["served_kl"] - found["kl"]) < LARGEST_KL_CHANGE
    assert abs(found["served_top1"] - found["top1"]) <= LARGEST_TOP1_CHANGE
    assert found["served_ppl"] == pytest.approx(found["ppl"], rel=0.05)
    assert "native C, INT4, 8-bit activations" in found["served_by"]


def test_weights_that_only_the_engine_reads_wrongly_show_in_its_figure(
    row: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = row(answers=True)

    def engine_of_other_weights(model: Any, device: torch.device) -> NativeEngine | None:
        for _, layer in packed_layers(model):
            layer.packed.scale.mul_(1.2)
        return native_engine(model, device)

    monkeypatch.setattr(measure, "native_engine", engine_of_other_weights)
    wrong = row(answers=True)
    assert wrong["kl"] == right["kl"]
    assert wrong["served_kl"] > right["served_kl"] + LARGEST_KL_CHANGE


@pytest.mark.parametrize("reason", ["a baseline", "a GPU serves", "no engine in C"])
def test_where_transformers_alone_computes_there_is_one_figure(
    row: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "a GPU serves":
        monkeypatch.setattr(measure, "serving_device", lambda: torch.device("cuda"))
    if reason == "no engine in C":
        monkeypatch.setattr("upq.decode.native.unsupported", lambda _: "none here")
    found = row(answers=reason != "a baseline")
    assert found["kl"] > 0
    assert not [name for name in found if name.startswith("served")]
