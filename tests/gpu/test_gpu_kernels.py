"""The Triton kernels as an NVIDIA GPU runs them; run by `make gpu-check`. tests/unit/kernels has them interpreted."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import prepare, reference
from kernels.gpu import operators, tuning
from kernels.gpu.operators import TritonWeight, packed_matmul
from kernels.packing import PackedWeight
from tests.support.gpu_cases import IS_SIMULATED, sized
from tests.support.kernel_cases import (
    NARROW,
    NESTED,
    SHAPES,
    check_product,
    random_inputs,
    random_nested,
    random_packed,
    random_signed,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
HALF = [torch.float16, torch.bfloat16]
ROWS = sized([1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 70], [9, 65])
#: Types of inputs and their rows. Triton's interpreter cuts bfloat16 off, so a simulated GPU decodes no weight to it.
INPUTS = [
    (dtype, rows)
    for dtype in (*HALF, torch.float32)
    for rows in sized((1, 5, 70), (5, 70))
    if not (IS_SIMULATED and dtype == torch.bfloat16 and rows == 70)
]
#: The simulated GPU interprets one shape; tests/unit/kernels/test_triton.py has the others interpreted.
WIDE = sized([*SHAPES, (576, 576, 9), (1536, 1536, 1)], [(31, 96, 3)])
ALL_SHAPES = [*WIDE, *sized(NARROW, NARROW[:1])]
CONFIGS = [(columns, one) for columns, many in tuning.CANDIDATES.items() for one in many]
EXAMPLES = 3 if IS_SIMULATED else 30


@pytest.fixture(scope="module", autouse=True)
def untimed() -> object:
    """Defaults instead of timing: each test shape would otherwise compile every candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            operators, "choose", lambda device, columns, *_: tuning.CANDIDATES[columns][0]
        )
        yield


@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_are_those_of_the_definition(bits: int, shape: tuple[int, int, int]) -> None:
    packed = random_packed(bits, *shape, device="cuda")
    prepared = prepare(packed)
    assert isinstance(prepared, TritonWeight)
    for dtype, rows in INPUTS:
        check_product(prepared, packed, random_inputs(rows, shape[1], dtype, "cuda"))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", HALF)
def test_every_number_of_rows_gives_the_product(rows: int, dtype: torch.dtype) -> None:
    packed = random_packed(2, 67, 192, 3, "cuda")
    check_product(TritonWeight(packed), packed, random_inputs(rows, 192, dtype, "cuda"))


@settings(max_examples=EXAMPLES)
@given(
    bits=st.sampled_from([2, 4, 8]),
    outputs=st.integers(1, 200),
    group=st.sampled_from([16, 32, 48, 64, 128]),
    groups=st.integers(1, 9),
    rows=st.integers(1, 70),
    dtype=st.sampled_from(HALF),
)
def test_any_shape_gives_the_product(
    bits: int, outputs: int, group: int, groups: int, rows: int, dtype: torch.dtype
) -> None:
    packed = random_packed(bits, outputs, group * groups, groups, "cuda")
    check_product(TritonWeight(packed), packed, random_inputs(rows, group * groups, dtype, "cuda"))


@pytest.mark.parametrize(("columns", "config"), sized(CONFIGS, CONFIGS[::7]))
def test_every_configuration_gives_the_product(
    columns: int, config: tuning.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "choose", lambda *given: config)
    for inputs in sized((320, 2048), (320,)):
        packed = random_packed(2, 70, inputs, inputs // 64, "cuda")
        check_product(
            TritonWeight(packed), packed, random_inputs(columns, inputs, torch.bfloat16, "cuda")
        )


@pytest.mark.parametrize("dtype", sized([*HALF, torch.float32], [torch.float16, torch.float32]))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_decoded_weights_are_those_of_the_definition(bits: int, dtype: torch.dtype) -> None:
    for shape in ALL_SHAPES:
        packed = random_packed(bits, *shape, device="cuda")
        expected = reference.dequantize(packed).to(dtype)
        found = TritonWeight(packed).dequantize(dtype)
        torch.testing.assert_close(found, expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_group_may_have_a_zero_of_its_own(bits: int, shape: tuple[int, int, int]) -> None:
    packed = random_packed(bits, *shape, device="cuda")
    zeros = torch.randint(0, 2**bits, packed.scale.shape, dtype=torch.uint8, device="cuda")
    # A quarter: products of 1536 codes of up to 255 leave the range of float16 otherwise.
    packed = replace(packed, zeros=zeros, scale=packed.scale / 4)
    check_weight(packed)


@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_may_be_a_code_and_scales_have_any_sign(
    bits: int, shape: tuple[int, int, int]
) -> None:
    packed = random_signed(bits, *shape)
    check_weight(replace(packed, scale=packed.scale / 4))


@pytest.mark.parametrize("shape", sized([*NESTED, (576, 1536)], [(33, 192)]))
def test_scales_may_have_two_levels(shape: tuple[int, int]) -> None:
    check_weight(random_nested(*shape))


def check_weight(packed: PackedWeight) -> None:
    """The products and the decoded weight, as the definition has them on the same GPU."""
    packed = packed.to("cuda")
    prepared = TritonWeight(packed)
    for dtype, rows in INPUTS:
        check_product(prepared, packed, random_inputs(rows, packed.shape[1], dtype, "cuda"))
    expected = reference.dequantize(packed)
    torch.testing.assert_close(prepared.dequantize(torch.float32), expected, atol=0.0, rtol=0.0)


@pytest.mark.parametrize(("columns", "config"), sized(CONFIGS, CONFIGS[:1]))
def test_every_configuration_gives_the_product_of_two_levels(
    columns: int, config: tuning.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "choose", lambda *given: config)
    for inputs in sized((320, 2048), (320,)):
        packed = random_nested(70, inputs).to("cuda")
        given = random_inputs(columns, inputs, torch.bfloat16, "cuda")
        check_product(TritonWeight(packed), packed, given)


def test_zero_and_subnormal_scales_give_the_product() -> None:
    packed = random_packed(2, 8, 64, 2, "cuda")
    scale = packed.scale.clone()
    scale[0], scale[1], scale[2] = 0.0, 2.0**-24, 2.0**-15
    packed = replace(packed, scale=scale)
    check_product(TritonWeight(packed), packed, random_inputs(2, 64, torch.bfloat16, "cuda"))
    assert not TritonWeight(packed)(random_inputs(2, 64, torch.float16, "cuda"))[:, 0].any()


def test_inputs_of_any_layout_are_taken() -> None:
    packed = random_packed(4, 20, 64, 2, "cuda")
    prepared = TritonWeight(packed)
    wide = random_inputs(6, 128, torch.float16, "cuda")
    expected = prepared(wide[:, ::2].contiguous())
    assert torch.equal(prepared(wide[:, ::2].view(2, 3, 64)), expected.view(2, 3, 20))
    assert prepared(wide[:0, ::2]).shape == (0, 20)


def test_the_operator_passes_the_checks_of_torch() -> None:
    prepared = TritonWeight(random_packed(2, 20, 64, 2, "cuda"))
    inputs = random_inputs(2, 64, torch.float16, "cuda")
    torch.library.opcheck(packed_matmul, (inputs, *prepared.parts.values(), 20, 2, 32, 1.5))


def test_a_captured_product_gives_the_same_bits_when_it_is_replayed() -> None:
    packed = random_packed(2, 300, 576, 9, "cuda")
    prepared = TritonWeight(packed)
    inputs = random_inputs(1, 576, torch.bfloat16, "cuda")
    expected = prepared(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = prepared(inputs)
    outputs.zero_()
    graph.replay()
    assert torch.equal(outputs, expected)


@pytest.mark.skipif(IS_SIMULATED, reason="nothing is tuned where kernels are interpreted")
def test_tuning_is_done_once_and_remembered_on_disk_and_never_while_a_graph_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPQ_CACHE", str(tmp_path))
    monkeypatch.setattr(operators, "choose", tuning.choose)
    tuning._file.cache_clear()
    packed = random_packed(2, 512, 1024, 16, "cuda")
    prepared = TritonWeight(packed)
    inputs = random_inputs(1, 1024, torch.bfloat16, "cuda")
    TritonWeight(random_packed(2, 64, 1024, 16, "cuda"))(inputs)  # compiles what it tunes
    start = time.perf_counter()
    check_product(prepared, packed, inputs)
    assert time.perf_counter() - start < 10
    (file,) = tmp_path.rglob("triton-*.json")
    written = file.read_bytes()
    assert tuning._remembered.__wrapped__(file).keys() == {
        f"{rows}x1024 2 bits, group 64, 8 torch.bfloat16" for rows in (64, 512)
    }
    other = TritonWeight(random_packed(2, 128, 1024, 16, "cuda"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other(inputs)
    prepared(inputs)
    assert file.read_bytes() == written
    tuning._file.cache_clear()
