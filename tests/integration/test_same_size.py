"""The comparison with llama.cpp's own files makes those files and measures them. Needs requirements-export.txt."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest
import torch

from bench.same_size import (
    FALLBACKS,
    TYPES,
    has_more_bits,
    measured,
    plain_model,
    quantized,
    rounded,
)
from tests.support.gguf_export_cases import packed_model, small_model
from upq.export import export
from upq.export.gguf_read import Reader
from upq.layers import grid_of

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K"])
def test_llama_cpp_rounds_to_what_gguf_py_reads(kind: str) -> None:
    values = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).numpy()
    data = rounded(values, kind)
    found = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(TYPES[kind][0])).reshape(4, 256)
    error = float(numpy.square(found - values).mean())
    assert error < {"Q2_K": 0.15, "Q4_0": 0.01, "Q4_K": 0.01}.get(kind, 0.003)


def test_more_bits_are_at_both_ends_and_in_every_third_block_between() -> None:
    chosen = [block for block in range(16) if has_more_bits(block, 16)]
    assert chosen == [0, 1, 4, 7, 10, 13, 14, 15]


def test_both_files_of_a_small_model_are_measured(tmp_path: Path) -> None:
    loaded = small_model(tmp_path / "small")
    plain = plain_model(loaded)
    [reference] = [
        path for path in export(plain, "gguf", tmp_path / "a").files if path.suffix == ".gguf"
    ]
    ours = packed_model(loaded, grid_of("signed", 4), 32)
    [mine] = [path for path in export(ours, "gguf", tmp_path / "b").files if path.suffix == ".gguf"]
    theirs = quantized(plain, "Q4_0", tmp_path / "theirs.gguf")
    kinds = {name: stored.kind.name for name, stored in Reader(theirs).stored.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["token_embd.weight"]) == ("Q4_0", "Q8_0")
    assert abs(theirs.stat().st_size / mine.stat().st_size - 1) < 0.05
    rows = measured(reference, [reference, theirs, mine], [[1, 70, 80, 90]], 263, 1)
    assert [row.file for row in rows] == [one.name for one in (reference, reference, theirs, mine)]
    assert rows[0].kl == 0
    assert abs(rows[1].kl) < 1e-6
    assert all(0 < row.kl < 1 for row in rows[2:])
    assert all(row.tokens_per_s > 0 for row in rows)


def test_every_type_of_whole_blocks_has_something_in_its_place() -> None:
    assert {kind for kind, (_, block, _) in TYPES.items() if block > 32} == FALLBACKS.keys()
