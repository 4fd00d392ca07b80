"""Products with packed weights on this CPU, cold, against torch in every type that it multiplies here.

python -m bench.cpu_kernels --json kernels.json --plot kernels.svg

Each product runs over as many copies of its weight as no cache holds, one after the other, and one number is the
median time of a pass, divided by the copies. GB/s counts the bytes of the weight, scales included.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench import random_weights, report
from kernels.cpu import build
from kernels.cpu import panels as cpu
from kernels.packing import PackedWeight

#: (outputs, inputs): the layers of SmolLM2-135M, its head, then layers of Llama-3.2-1B.
SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576), (2048, 2048), (8192, 2048))
ROWS = (1, 4, 16, 64)
#: More than the last cache of a desktop or small server.
COLD_BYTES = 96_000_000
PASSES = 7


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw the products with one row here, as SVG")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options = parser.parse_args()
    library = cpu.library() or sys.exit("The C kernels could not be compiled here.")
    bandwidth = copy_bandwidth()
    name = f"{build.instruction_set()}, {torch.get_num_threads()} threads"
    sys.stdout.write(f"{name}; copy: {bandwidth / 1e9:.1f} GB/s, read and written together\n")
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for shape in SHAPES:
            rows += measure_shape(shape, options.rows, library, bandwidth)
    report.show(rows)
    report.save(
        options.json, rows, group=random_weights.ODD_GROUP, copy_bytes_per_s=bandwidth, kernels=name
    )
    if options.plot:
        one = [row for row in rows if row["rows"] == 1]
        report.draw_bars(options.plot, one, ("shape",), "kernel", "times torch FP32")


def copy_bandwidth() -> float:
    """Bytes per second of copying a block that no cache holds, both directions counted."""
    source, target = (torch.zeros(COLD_BYTES, dtype=torch.uint8) for _ in range(2))
    return 2 * COLD_BYTES / report.median_seconds(lambda: target.copy_(source), PASSES, 2)


def measure_shape(
    shape: tuple[int, int], counts: list[int], library: ctypes.CDLL, bandwidth: float
) -> Iterator[dict[str, Any]]:
    """One row for each kernel and number of activation rows."""
    for rows in counts:
        slowest = 0.0
        for name, size, product, dtype in products(shape, library):
            copies = max(2, COLD_BYTES // size)
            inputs = torch.randn(rows, shape[1]).to(dtype)
            seconds = time_of(product(min(copies, 400), inputs), min(copies, 400))
            slowest = slowest or seconds
            yield {
                "shape": f"{shape[0]}x{shape[1]}",
                "rows": rows,
                "kernel": name,
                "us": seconds * 1e6,
                "GB/s": size / seconds / 1e9,
                "of copy": size / seconds / bandwidth,
                "times torch FP32": slowest / seconds,
            }


def time_of(step: Callable[[], object], copies: int) -> float:
    def whole() -> None:
        for _ in range(copies):
            step()

    return report.median_seconds(whole, PASSES) / copies


def products(
    shape: tuple[int, int], library: ctypes.CDLL
) -> Iterator[tuple[str, int, Callable[[int, torch.Tensor], Callable[[], object]], torch.dtype]]:
    """(name, bytes of the weight, maker of a step over copies, type of the activations); torch FP32 comes first."""
    outputs, inputs = shape
    weight = torch.randn(shape)
    for dtype, name in (
        (torch.float32, "torch FP32"),
        (torch.bfloat16, "torch BF16"),
        (torch.float16, "torch FP16"),
    ):
        dense = weight.to(dtype)
        yield name, dense.nbytes, dense_steps(dense), dtype
    if inputs % 128 == 0:
        yield (
            "torch INT4, g128",
            int(outputs * inputs * (0.5 + 4 / 128)),
            tinygemm(shape),
            torch.bfloat16,
        )
    yield "ours FP16", weight.nbytes // 2, native_steps(weight, library), torch.float32
    for bits in (8, 4, 2):
        packed = random_weights.odd(*shape, bits, device="cpu")
        yield f"ours INT{bits}", packed.size_bytes, native_steps(packed, library), torch.float32
    packed = random_weights.two_levels(*shape, device="cpu")
    name = "ours INT2, two levels"
    yield name, packed.size_bytes, native_steps(packed, library), torch.float32


def dense_steps(weight: torch.Tensor) -> Callable[[int, torch.Tensor], Callable[[], object]]:
    def make(copies: int, inputs: torch.Tensor) -> Callable[[], object]:
        turn = cycle([weight.clone() for _ in range(copies)])
        return lambda: F.linear(inputs, next(turn))

    return make


def tinygemm(shape: tuple[int, int]) -> Callable[[int, torch.Tensor], Callable[[], object]]:
    """torch's own 4-bit product, fast for bfloat16 only."""
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.ones(shape[1] // 128, shape[0], 2, dtype=torch.bfloat16)

    def make(copies: int, inputs: torch.Tensor) -> Callable[[], object]:
        turn = cycle([packed.clone() for _ in range(copies)])
        operator = torch.ops.aten._weight_int4pack_mm_for_cpu
        return lambda: operator(inputs, next(turn), 128, scales)

    return make


def native_steps(
    weight: PackedWeight | torch.Tensor, library: ctypes.CDLL
) -> Callable[[int, torch.Tensor], Callable[[], object]]:
    """The C kernels as the decoder calls them, the rounding of the activations included."""

    def make(copies: int, inputs: torch.Tensor) -> Callable[[], object]:
        arena = cpu.Arena(copies * cpu.Arena.room(weight))
        panels = [cpu.Panels(library, weight, arena=arena) for _ in range(copies)]
        rows = len(inputs)
        outputs = torch.empty(rows, weight.shape[0])
        room = panels[0].room(rows)
        threads = torch.get_num_threads()
        pointers = (inputs.data_ptr(), room.data_ptr(), outputs.data_ptr(), threads)
        turn = cycle(panels)
        kept = (inputs, room, outputs)

        def step() -> object:
            return kept, library.multiply(ctypes.byref(next(turn).struct), rows, *pointers)

        return step

    return make


if __name__ == "__main__":
    main()
