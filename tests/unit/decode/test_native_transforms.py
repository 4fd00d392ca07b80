"""Transforms around packed matrices in C: the products and the logits of torch, to the bit the same in any company."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from kernels import reference
from kernels.cpu import panels
from kernels.packing import PackedWeight
from kernels.transform import Transform
from tests.support.kernel_cases import random_inputs, random_packed
from tests.support.native_cases import around_layer, in_plain_torch, rounded, surrounded
from tests.unit.decode.test_native import (
    check_company,
    logits_of,
    prompt,
    random_model,
    real_prompts,
)
from tests.unit.kernels.test_cpu_kernels import SETS, weight_on
from upq.decode import NativeEngine, native
from upq.models import LoadedModel

KINDS = ["input", "both", "lattice", "some"]
#: (rows, columns, groups) of the bundled model and such that no panel divides.
SHAPES = [(576, 576, 9), (192, 576, 9), (576, 1536, 24), (48, 64, 1), (20, 36, 1), (12, 100, 1)]


def surrounded_weight(kind: str, rows: int, columns: int, groups: int, bits: int) -> PackedWeight:
    around = around_layer(kind, 0, rows, columns)
    return dataclasses.replace(random_packed(bits, rows, columns, groups), transform=around)


def expected_product(inputs: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """In float64, on the transformed inputs as the kernels round them."""
    around = packed.transform or Transform()
    seen, added = around.inputs(inputs)
    product = rounded(seen, panels.SPAN).double() @ reference.dequantize(packed).double().T
    return around.outputs(product, None if added is None else added.double())


@pytest.mark.parametrize("kind", ["input", "both", "lattice"])
@pytest.mark.parametrize("name", SETS)
def test_products_are_those_of_torch_on_rounded_activations(name: str, kind: str) -> None:
    for rows, columns, groups in SHAPES:
        packed = surrounded_weight(kind, rows, columns, groups, bits=2)
        weight = weight_on(name, packed)
        for tokens in (1, 3, 8, 21):
            inputs = random_inputs(tokens, columns, torch.float32)
            exact = expected_product(inputs, packed)
            error = (weight(inputs) - exact).norm(dim=-1) / exact.norm(dim=-1)
            # A value just between two of its 255 may be rounded to the other one; the rest is exact.
            assert error.median() < 1e-5
            assert error.max() < 5e-3


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 512])
@pytest.mark.parametrize("name", SETS)
def test_blocks_of_every_size_on_both_sides(name: str, block: int) -> None:
    plain = random_packed(4, 512, 512, 4)
    zeros = torch.randint(0, 16, plain.scale.shape, dtype=torch.uint8)
    packed = dataclasses.replace(plain, zeros=zeros, transform=Transform(block, block))
    inputs = random_inputs(3, 512, torch.float32)
    exact = expected_product(inputs, packed)
    for threads in (1, 2, 3):
        error = (weight_on(name, packed, threads)(inputs) - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 1e-4


@pytest.mark.parametrize("kind", ["input", "both", "lattice"])
@pytest.mark.parametrize("name", SETS)
def test_a_product_is_the_same_to_the_bit_however_it_is_cut(name: str, kind: str) -> None:
    packed = surrounded_weight(kind, 96, 192, 3, bits=4)
    inputs = random_inputs(20, 192, torch.float32)
    together = weight_on(name, packed)(inputs)
    for threads in (1, 2, 3):
        weight = weight_on(name, packed, threads)
        assert torch.equal(torch.cat([weight(inputs[at : at + 1]) for at in range(20)]), together)
        assert torch.equal(weight(inputs[3:17]), together[3:17])


def test_blocks_too_large_for_one_thread_are_multiplied_by_torch() -> None:
    packed = dataclasses.replace(random_packed(2, 8192, 32, 1), transform=Transform(1, 8192))
    assert panels.unsupported(packed) == "Hadamard blocks of 8192 outputs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "model", ["Llama", "Llama, widths that are no multiple of 32, tied", "Qwen2, biases"]
)
def test_logits_are_those_of_torch_on_rounded_and_on_exact_activations(
    model: str, kind: str
) -> None:
    packed = surrounded(random_model(model, num_hidden_layers=1), 4, kind, 0)
    assert native.unsupported(packed) == ""
    ids = prompt(12)
    for exact, least, most in ((False, 1e-5, 0.05), (True, 1e-5, 1e-3)):
        engine = NativeEngine(packed, 3, exact=exact)
        expected = logits_of(in_plain_torch(packed, engine.span), ids)
        session = engine.session(1, 12)
        found = [session.prefill(0, ids[:1]), *(session.step([0], [token])[0] for token in ids[1:])]
        error = (torch.stack(found) - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert error.min() < least
        assert error.max() < most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_a_row_gets_the_same_bits_in_any_company_and_on_any_threads(name: str, kind: str) -> None:
    check_company(surrounded(random_model("Llama"), 2, kind, 32), name)


def test_equal_input_transforms_are_in_memory_once() -> None:
    model = random_model("Llama", num_hidden_layers=1)
    plain = NativeEngine(surrounded(model, 2, "none", 32)).memory_bytes
    hidden, inner = (4 * panels.padded(size) for size in (64, 96))
    # Queries, keys, values, outputs, gate and up read vectors of one width, down one of the other.
    assert NativeEngine(surrounded(model, 2, "input", 32)).memory_bytes == plain + hidden + inner


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["input", "both"])
def test_the_real_model_writes_the_tokens_of_torch(bundled: LoadedModel, kind: str) -> None:
    model = surrounded(bundled.model, 4, kind)
    [ids] = real_prompts(bundled, 1)
    session: Any = NativeEngine(model, exact=True).session(1, len(ids) + 24)
    answer = [int(session.prefill(0, ids).argmax())]
    while len(answer) < 24:
        answer.append(int(session.step([0], answer[-1:])[0].argmax()))
    expected = logits_of(in_plain_torch(model, 0), [*ids, *answer])[len(ids) - 1 : -1]
    lost = expected.max(-1).values - expected.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert lost.max() < 0.01, "not the best token, and no tie either"
    assert int((lost > 0).sum()) <= 1
