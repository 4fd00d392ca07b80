"""What every benchmark shares: facts of the machine, the commit, medians, a table, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from upq.machine import commit, processor

Point = tuple[float, float]
PACKAGES = ("torch", "triton", "transformers", "gemlite", "torchao", "llama-cpp-python")


def machine() -> dict[str, Any]:
    """Processor, GPU, threads and the versions of what was measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_properties() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu and f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "versions": versions,
    }


def median_seconds(run: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Median wall-clock time of `run`, which must have finished its work when it returns."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a Markdown table; its columns are the keys of the first."""
    headers = list(rows[0]) if rows else []
    cells = [[row.get(name) for name in headers] for row in rows]
    sys.stdout.write(tabulate(cells, headers, tablefmt="github", floatfmt=".4g") + "\n")


def save(path: Path | None, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Write rows and facts as JSON, with machine, commit and time of day. No path, no file."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    whole = {"made": made, "commit": commit(), "machine": machine(), **facts, "rows": list(rows)}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def draw_bars(
    path: Path, rows: Sequence[dict[str, Any]], group: Sequence[str], series: str, value: str
) -> None:
    """Draw `value` as SVG: one cluster of bars for each combination of `group`, one bar for each of `series`."""
    labels = list(dict.fromkeys(", ".join(str(row[name]) for name in group) for row in rows))
    names = list(dict.fromkeys(row[series] for row in rows))
    width = 0.8 / len(names)
    with _axes(path) as axes:
        if axes is None:
            return
        for index, name in enumerate(names):
            mine = [row for row in rows if row[series] == name]
            places = [labels.index(", ".join(str(row[part]) for part in group)) for row in mine]
            offset = (index - (len(names) - 1) / 2) * width
            places = [place + offset for place in places]
            axes.bar(places, [row[value] for row in mine], width, label=name)
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
        axes.set_ylabel(value)


def draw_curves(
    path: Path,
    curves: Mapping[str, tuple[Sequence[Point], Point]],
    x_name: str,
    y_name: str,
) -> None:
    """Draw as SVG, for each name, a line through some points and a dot of the same colour; y is logarithmic."""
    with _axes(path) as axes:
        if axes is None:
            return
        for name, (points, last) in curves.items():
            dot = axes.plot(*last, "o", label=name)[0]
            axes.plot([x for x, _ in points], [y for _, y in points], color=dot.get_color())
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlim(left=0)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)


@contextmanager
def _axes(path: Path) -> Iterator[Any]:
    """Axes to draw on, saved with a legend behind the block; None where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: PLC0415  only the plots need it
    except ImportError:
        sys.stdout.write("matplotlib is not installed: no plot\n")
        yield None
        return
    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    ten = pyplot.colormaps["tab20"](range(0, 20, 2)).tolist()
    axes.set_prop_cycle(color=[*ten, "black", "gold"])
    yield axes
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
