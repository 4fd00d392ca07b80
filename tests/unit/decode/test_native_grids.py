"""The decoder in C on models of GGUF's grids: the tokens of transformers, the same bits in any company."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from kernels.packing import PackedWeight
from tests.support.native_cases import in_plain_torch, repacked, signed, two_levels
from tests.unit.decode.test_native import (
    check_company,
    check_rounded_logits,
    logits_of,
    prompt,
    random_model,
)
from tests.unit.kernels.test_cpu_kernels import EXTRA_FLAGS, SETS
from upq.decode import NativeEngine, native

PACK: dict[str, Callable[[torch.Tensor], PackedWeight]] = {
    "two levels": two_levels,
    "signed INT4": partial(signed, bits=4),
    "signed INT2": partial(signed, bits=2),
}
WIDTHS = {"hidden_size": 48, "intermediate_size": 112, "num_attention_heads": 3}
MODELS = {
    "Llama": random_model("Llama"),
    "twelve heads to one key head": random_model("twelve heads to one key head"),
    # blocks of 48 and of 112 inputs, which are not whole spans
    "tied": random_model("Llama, widths that are no multiple of 32, tied", **WIDTHS),
}


def packed_model(kind: str, grid: str) -> Any:
    model = repacked(MODELS[kind], PACK[grid], partial(signed, bits=8))
    assert native.unsupported(model) == ""
    return model


@pytest.mark.parametrize("grid", PACK)
@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_are_those_of_transformers(kind: str, grid: str) -> None:
    model, ids = packed_model(kind, grid), prompt(20)
    engine = NativeEngine(model, 2, exact=True, extra_flags=EXTRA_FLAGS)
    session: Any = engine.session(1, 52)
    found = [session.prefill(0, ids)]
    while len(found) < 32:
        found.append(session.step([0], [int(found[-1].argmax())])[0])
    answer = [int(logits.argmax()) for logits in found]
    expected = logits_of(model, [*ids, *answer])[len(ids) - 1 : -1]
    assert answer == expected.argmax(-1).tolist()
    error = (torch.stack(found) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 1e-3


@pytest.mark.parametrize("grid", PACK)
@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_those_of_torch_on_rounded_activations(kind: str, grid: str) -> None:
    check_rounded_logits(packed_model(kind, grid))


@pytest.mark.parametrize("kind", ["Llama", "tied"])
@pytest.mark.parametrize("name", SETS)
def test_a_row_gets_the_same_bits_in_any_company_and_on_any_threads(name: str, kind: str) -> None:
    check_company(packed_model(kind, "two levels"), name)


@pytest.mark.parametrize("exact", [True, False])
def test_embedding_and_head_may_have_scales_of_two_levels(exact: bool) -> None:
    model, ids = repacked(MODELS["Llama"], two_levels, two_levels), prompt(6)
    engine = NativeEngine(model, 1, exact=exact, extra_flags=EXTRA_FLAGS)
    expected = logits_of(in_plain_torch(model, engine.span), ids)[-1]
    found = engine.session(1, 6).prefill(0, ids)
    assert (found - expected).norm() < (1e-3 if exact else 0.05) * expected.norm()
