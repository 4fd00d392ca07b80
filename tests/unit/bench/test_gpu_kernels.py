"""The benchmark of products on a GPU goes on behind a product that is wrong, and says so at its end.

Tensors are on the CPU, products are torch's, and nothing is timed: what is tested is what the tables leave out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench import gpu_kernels
from kernels.packing import PackedWeight
from kernels.reference import matmul

SHAPE = 64, 128
ROWS = [1, 3]


class OnTheCPU(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if given.get("device") == "cuda":
            given["device"] = "cpu"
        return func(*args, **given)


class Decoded:
    """The product of a packed weight by the definition; of one with two levels of scales, `factor` times that."""

    factor = 1.0

    def __init__(self, packed: PackedWeight) -> None:
        self.packed = packed

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return matmul(inputs, self.packed) * (1 if self.packed.steps is None else self.factor)


def one_call(calls: list[Callable[[], object]]) -> float:
    """In the place of the time of a call: it is made once and takes a second."""
    calls[0]()
    return 1.0


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU, and the products of `Decoded`."""
    rivals = [one for one in gpu_kernels.contestants() if not one[0].startswith("tinygemm")]
    for name, value in {
        "FAILED": [],
        "TritonWeight": Decoded,
        "seconds": one_call,
        "copies": lambda size_bytes: 2,
        "copy_bandwidth": lambda gib: 1.0,
        "contestants": lambda: [one for one in rivals if not one[0].startswith("gemlite")],
    }.items():
        monkeypatch.setattr(gpu_kernels, name, value)
    with OnTheCPU():
        yield


def kernels(rows: list[dict[str, Any]]) -> list[str]:
    """The names of the rows' kernels, each once."""
    return list(dict.fromkeys(row["kernel"] for row in rows))


def test_right_products_have_a_row_for_each_number_of_inputs() -> None:
    rows = gpu_kernels.measure_shape(*SHAPE, ROWS, 1.0)
    assert kernels(rows) == ["cuBLAS FP16", *(f"ours {name}" for name in gpu_kernels.FORMS)]
    assert [row["rows"] for row in rows] == ROWS * (1 + len(gpu_kernels.FORMS))
    assert gpu_kernels.FAILED == []


def test_a_check_that_fails_is_recorded_and_the_other_rows_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(product: gpu_kernels.Product, packed: PackedWeight, *_: Any) -> None:
        if packed.bits == 4 and packed.zero == 7.5:
            raise RuntimeError("its product is wrong: relative error 1")

    monkeypatch.setattr(gpu_kernels, "_check", check)
    rows = gpu_kernels.measure_shape(*SHAPE, ROWS, 1.0)
    others = [f"ours {name}" for name in gpu_kernels.FORMS if name != "INT4"]
    assert kernels(rows) == ["cuBLAS FP16", *others]
    assert [row["rows"] for row in rows] == ROWS * (1 + len(others))
    assert gpu_kernels.FAILED == ["ours INT4, 64 x 128"]
    assert "ours INT4, 64 x 128: FAILED ['its product is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.03, -1.0, math.nan])
def test_a_wrong_product_fails_the_benchmark_after_all_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    monkeypatch.setattr(Decoded, "factor", factor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_kernels.report, "machine", dict)
    target = tmp_path / "kernels.json"
    options = ["--rows", "1", "--shapes", "64x128", "128x256", "--json", str(target)]
    monkeypatch.setattr("sys.argv", ["gpu_kernels", *options])
    wrong = [f"ours INT2, two levels, {shape}" for shape in ("64 x 128", "128 x 256")]
    with pytest.raises(SystemExit) as ended:
        gpu_kernels.main()
    assert ended.value.code == f"Failed: {'; '.join(wrong)}"
    rows = json.loads(target.read_text(encoding="utf-8"))["rows"]
    right = ["cuBLAS FP16", "ours INT2", "ours INT4", "ours INT4, signed"]
    assert [row["kernel"] for row in rows] == right * 2
