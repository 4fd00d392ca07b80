"""Products with packed weights on an NVIDIA GPU, cold, against cuBLAS and whatever rival is installed.

python -m bench.gpu_kernels --json kernels.json --plot kernels.svg

Every product is captured many times, each time over another copy of the weight, in one CUDA graph, so that a weight
never comes out of the cache and no launch waits for Python. One number is the median time of a replay over the copies.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from triton import knobs

from bench import random_weights, report
from kernels.gpu import operators, tuning
from kernels.gpu.operators import TritonWeight
from kernels.packing import PackedWeight, unpack
from kernels.reference import dequantize

#: (outputs, inputs): SmolLM2-135M, then Llama of 1B, 8B and 70B.
SHAPES = (
    (576, 576),
    (1536, 576),
    (2048, 2048),
    (4096, 4096),
    (14336, 4096),
    (28672, 8192),
    (8192, 28672),
)
ROWS = (1, 4, 16, 64)
WARM_HELP = "only compile: every OF-th variant from INDEX on, so that OF processes share the work"
GROUP = random_weights.ODD_GROUP
REPLAYS = 25
COPY_GIB = 1.0
#: Products that gave no time, or a wrong result.
FAILED: list[str] = []
#: A product of one set of copies: inputs -> outputs.
Product = Callable[[torch.Tensor], torch.Tensor]
#: The forms of weights that runs make: bits, and what makes a random one of (out, in, bits).
FORMS = {
    "INT2": (2, random_weights.odd),
    "INT2, two levels": (2, random_weights.two_levels),
    "INT4": (4, random_weights.odd),
    "INT4, signed": (4, random_weights.signed),
}


def main() -> None:
    """Measure, print a table, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw the products with one row here, as SVG")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--shapes", nargs="+", metavar="OUTxIN", help="instead of the usual ones")
    parser.add_argument("--copy-gib", type=float, default=COPY_GIB, help="size of the timed copy")
    parser.add_argument("--warm", nargs=2, type=int, metavar=("INDEX", "OF"), help=WARM_HELP)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("This benchmark needs an NVIDIA GPU.")
    if options.warm:
        warm(*options.warm)
        return
    shapes = [shape.split("x") for shape in options.shapes or ()] or SHAPES
    bandwidth = copy_bandwidth(options.copy_gib)
    sys.stdout.write(f"copy: {bandwidth / 1e9:.0f} GB/s, read and written bytes together\n")
    rows: list[dict[str, Any]] = []
    for outputs, inputs in shapes:
        rows += measure_shape(int(outputs), int(inputs), options.rows, bandwidth)
        report.save(options.json, rows, copy_bytes_per_s=bandwidth, group=GROUP)
    report.show(rows)
    report.save(options.json, rows, copy_bytes_per_s=bandwidth, group=GROUP)
    if options.plot:
        report.draw_bars(
            options.plot,
            [row for row in rows if row["rows"] == options.rows[0]],
            group=("out x in",),
            series="kernel",
            value="times FP16",
        )
    if any(one.startswith("ours") for one in FAILED):
        sys.exit(f"Failed: {'; '.join(FAILED)}")


def warm(index: int, of: int) -> None:
    """Compile every `of`-th variant of the kernels that this and bench.gpu_decode use, for the cache on the disk."""
    if knobs.runtime.interpret:
        return
    variants = [
        (name, dtype, inputs, columns, config)
        for name in [*FORMS, "INT8, signed"]
        for dtype in (torch.bfloat16, torch.float16)
        for inputs in (4096, 576, 1536)
        for columns in (8, 16)
        for config in tuning.CANDIDATES[columns]
        if dtype == torch.bfloat16 or (inputs == 4096 and name in FORMS)
    ]
    for name, dtype, inputs, columns, config in variants[index::of]:
        bits, form = FORMS.get(name, (8, random_weights.signed))
        packed = form(64, inputs, bits)
        rows = 1 if columns == 8 else columns
        operators.choose = lambda *_, one=config: one
        try:
            TritonWeight(packed)(torch.ones(rows, inputs, device="cuda", dtype=dtype))
        except Exception as error:
            said = str(error).splitlines()[:1]
            sys.stdout.write(f"{name}, {dtype}, {inputs} inputs, {config}: {said}\n")
    torch.cuda.synchronize()


def copy_bandwidth(gib: float) -> float:
    """Bytes per second, read and written, of a pass over so many GiB. A kernel makes it: a copy that is captured in a
    graph goes by the copy engine, which moved 2.8 TB/s on an H200 where a product reads 4.2.
    """
    source = torch.randn(int(gib * 2**28), device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds([lambda: torch.neg(source, out=target)] * 4)


def seconds(calls: list[Callable[[], object]]) -> float:
    """Median time of one call, all of them captured in a graph that is replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles and tunes, which a capture must not
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)


def copies(size_bytes: int) -> int:
    """How many copies of a weight of this size the cache cannot hold."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return max(2, -(-3 * cache // size_bytes))


def measure_shape(
    out_features: int, in_features: int, rows: list[int], bandwidth: float
) -> list[dict[str, Any]]:
    """One row of the table for each product and number of input rows; times of FP16 come first."""
    found = []
    baseline: dict[int, float] = {}
    for name, bits, make, dtype in contestants():
        try:
            products, size = make(out_features, in_features, bits)
            for count in rows:
                inputs = torch.randn(count, in_features, device="cuda", dtype=dtype)
                time = seconds([lambda one=one, x=inputs: one(x) for one in products])
                baseline.setdefault(count, time)
                found.append(
                    {
                        "kernel": name,
                        "out x in": f"{out_features} x {in_features}",
                        "rows": count,
                        "microseconds": time * 1e6,
                        "GB/s": size / time / 1e9,
                        "share of copy": size / time / bandwidth,
                        "times FP16": baseline[count] / time,
                    }
                )
                sys.stdout.write(
                    f"{name}, {out_features} x {in_features}, {count}: {time * 1e6:.1f}\n"
                )
                sys.stdout.flush()
        except Exception as error:  # one that fails is said in a line, and the others go on
            said = str(error).splitlines()[:1]
            sys.stdout.write(f"{name}, {out_features} x {in_features}: FAILED {said}\n")
            FAILED.append(f"{name}, {out_features} x {in_features}")
        torch.cuda.empty_cache()
    return found


def contestants() -> list[tuple[str, int, Callable[..., Any], torch.dtype]]:
    """(name, bits, maker of products, dtype of inputs). The first is what the others are compared with."""
    found = [
        ("cuBLAS FP16", 16, cublas, torch.float16),
        *(
            (f"ours {name}", bits, functools.partial(ours, form), torch.float16)
            for name, (bits, form) in FORMS.items()
        ),
        ("tinygemm INT4 (torchao)", 4, tinygemm, torch.bfloat16),
    ]
    if importlib.util.find_spec("gemlite"):
        found += [("gemlite INT2", 2, gemlite_linear, torch.float16)]
        found += [("gemlite INT4", 4, gemlite_linear, torch.float16)]
    else:
        sys.stdout.write("gemlite is not installed: skipped\n")
    return found


def cublas(out_features: int, in_features: int, bits: int) -> tuple[list[Product], int]:
    """torch's own product in 16 bits."""
    size = out_features * in_features * bits // 8
    made = [
        torch.randn(out_features, in_features, device="cuda", dtype=torch.float16)
        for _ in range(copies(size))
    ]
    return [lambda x, w=weight: F.linear(x, w) for weight in made], size


def ours(
    form: Callable[[int, int, int], PackedWeight], out_features: int, in_features: int, bits: int
) -> tuple[list[Product], int]:
    """kernels.gpu.operators, checked against the decoded weight."""
    packed = form(out_features, in_features, bits)
    made = [TritonWeight(packed) for _ in range(copies(packed.size_bytes))]
    _check(made[0], packed)
    return list(made), packed.size_bytes


def tinygemm(out_features: int, in_features: int, bits: int) -> tuple[list[Product], int]:
    """The INT4 product of torch that torchao's int4 weights on a GPU are multiplied with."""
    packed = random_weights.odd(out_features, in_features, bits)
    codes = unpack(packed.codes, bits)
    pairs = (codes[:, ::2] << 4) | codes[:, 1::2]
    tiles = 8 if in_features % 128 == 0 else 2
    made = [
        torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
        for _ in range(copies(packed.size_bytes))
    ]
    scale = packed.scale.bfloat16()  # its weight: scale * (code - 8) + offset
    grid = torch.stack([scale, scale * 0.5], dim=-1).transpose(0, 1).contiguous()
    size = made[0].nbytes + grid.nbytes
    products = [lambda x, w=w: torch.ops.aten._weight_int4pack_mm(x, w, GROUP, grid) for w in made]
    _check(products[0], packed, torch.bfloat16)
    return products, size


def gemlite_linear(out_features: int, in_features: int, bits: int) -> tuple[list[Product], int]:
    """gemlite with its own choice of kernel and configuration."""
    core = importlib.import_module("gemlite.core")
    packed = random_weights.odd(out_features, in_features, bits)
    codes = unpack(packed.codes, bits)
    zeros = torch.full_like(packed.scale, packed.zero)
    made = []
    for _ in range(copies(packed.size_bytes)):
        layer = core.GemLiteLinear(
            bits,
            group_size=GROUP,
            in_features=in_features,
            out_features=out_features,
            input_dtype=core.DType.FP16,
            output_dtype=core.DType.FP16,
        )
        layer.pack(codes, packed.scale.clone(), zeros.clone(), None)
        made.append(layer)
    _check(made[0], packed)
    return made, packed.size_bytes


def _check(product: Product, packed: PackedWeight, dtype: torch.dtype = torch.float16) -> None:
    """RuntimeError if a product is not that of the packed weight."""
    inputs = torch.randn(2, packed.shape[1], device="cuda", dtype=dtype)
    expected = inputs.float() @ dequantize(packed).T
    error = (product(inputs).float() - expected).norm() / expected.norm()
    if not error < 0.02:
        raise RuntimeError(f"its product is wrong: relative error {error:.3g}")


if __name__ == "__main__":
    main()
