"""The comparison with llama.cpp's own files makes those files and measures them. Needs requirements-export.txt."""

from __future__ import annotations

import copy
from pathlib import Path

import gguf
import numpy
import pytest
import torch

from bench.llama_files import (
    FALLBACKS,
    TYPES,
    export_of,
    has_more_bits,
    importance_of,
    plain_model,
    quantized,
    read_into,
    rounded,
)
from bench.same_size import inside
from tests.support.gguf_export_cases import packed_model, small_model
from upq.export.gguf_read import Reader
from upq.layers import grid_of

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K"])
def test_llama_cpp_rounds_to_what_gguf_py_reads(kind: str) -> None:
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).numpy()
    most = {"Q2_K": 0.15, "Q4_0": 0.01, "Q4_K": 0.01}.get(kind, 0.003)
    assert error_of(values, kind).mean() < most


def error_of(
    values: numpy.ndarray, kind: str, importance: numpy.ndarray | None = None
) -> numpy.ndarray:
    """(columns,) mean square of what llama.cpp's rounding changes."""
    data = rounded(values, TYPES[kind], importance)
    number = gguf.GGMLQuantizationType(TYPES[kind].number)
    found = gguf.quants.dequantize(data, number).reshape(values.shape)
    return numpy.square(found - values).mean(0)


@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "Q4_K"])
def test_inputs_that_matter_more_are_rounded_more_exactly(kind: str) -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).numpy()
    importance = numpy.where(numpy.arange(256) % 8 == 0, 100.0, 1.0).astype(numpy.float32)
    before, after = error_of(values, kind), error_of(values, kind, importance)
    assert after[::8].mean() < 0.8 * before[::8].mean()


def test_importance_is_the_mean_square_of_what_enters_a_linear(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "small")
    seen: list[torch.Tensor] = []
    down = loaded.model.model.layers[0].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    importance = importance_of(loaded, [(1, 70, 80), (90, 100)])
    handle.remove()
    every = torch.cat([inputs[0] for inputs in seen]).double().square().mean(0)
    assert numpy.allclose(importance["blk.0.ffn_down.weight"], every.float().numpy())
    assert all(name.startswith("blk.") for name in importance)


def test_a_file_is_read_back_into_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "small")
    plain, before = plain_model(loaded), copy.deepcopy(loaded.model)
    exact = quantized(plain, "F32", tmp_path / "f32.gguf")
    for parameter in loaded.model.parameters():
        parameter.data.zero_()
    read_into(loaded.model, exact, plain)
    found = dict(loaded.model.named_parameters())
    for name, parameter in before.named_parameters():
        if "embed" not in name and "lm_head" not in name:  # those are in 8 bits
            assert torch.equal(found[name], parameter.half().float()), name


def test_more_bits_are_at_both_ends_and_in_every_third_block_between() -> None:
    chosen = [block for block in range(16) if has_more_bits(block, 16)]
    assert chosen == [0, 1, 4, 7, 10, 13, 14, 15]


def test_both_files_of_a_small_model_are_measured(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "small")
    plain = plain_model(loaded)
    reference = export_of(plain, tmp_path / "a")
    mine = export_of(packed_model(loaded, grid_of("signed", 4), 32), tmp_path / "b")
    theirs = quantized(plain, "Q4_0", tmp_path / "theirs.gguf")
    kinds = {name: stored.kind.name for name, stored in Reader(theirs).stored.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["token_embd.weight"]) == ("Q4_0", "Q8_0")
    assert abs(theirs.stat().st_size / mine.stat().st_size - 1) < 0.05
    rows = list(inside([reference, reference, theirs, mine], [[1, 70, 80, 90]], 263, 1))
    assert rows[0][0].kl == 0
    assert abs(rows[1][0].kl) < 1e-6
    assert all(0 < agrees.kl < 1 for agrees, _ in rows[2:])
    assert all(speed > 0 for _, speed in rows)


def test_every_type_of_whole_blocks_has_something_in_its_place() -> None:
    assert {name for name, kind in TYPES.items() if kind.block > 32} == FALLBACKS.keys()
