"""Quality, size and time of every method on one model, under the same data and token budget.

python -m bench.quantization --preset quick --seeds 0 1 --json results.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import report
from upq import commands
from upq.config import METHODS, with_settings
from upq.context import STAGES
from upq.jobs import open_store
from upq.presets import preset

COLUMNS = (
    "method",
    "seed",
    "label",
    "bits_per_weight",
    "size_bytes",
    "kl",
    "kl_p95",
    "top1",
    "ppl",
    "tokens",
)


def main() -> None:
    """Run the benchmark and print its tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data-dir", type=Path, help="keep the runs there; the app shows them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = options.data_dir or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        runs = [
            _measure(folder, options, method, seed)
            for method in options.methods
            for seed in options.seeds
        ]
    _count_data(runs)
    rows = [row for run in runs for row in run["rows"]]
    report.show([{name: row[name] for name in COLUMNS} for row in rows])
    report.show([_time_row(run) for run in runs])
    report.save(options.json, rows, preset=options.preset, runs=runs)


def _measure(folder: Path, options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    changes = {"model.source": options.model, "seed": seed}
    config = with_settings(preset(options.preset, method), changes)
    run = commands.run_and_wait(folder, lambda store: store.enqueue(config), _say)
    if run.state != "done":
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    store = open_store(folder)
    points = store.metrics(run.id)
    speeds = [point["value"] for point in points if point["series"] == "tokens_per_s"]
    curve = [point for point in points if point["series"] == "held_out_kl_int2"]
    return {
        "method": method,
        "seed": seed,
        "stages": {name: (one["ended"] or 0) - one["started"] for name, one in run.stages.items()},
        "distillation_tokens_per_s": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "peak_bytes": run.peak_bytes,
        "kl_curve": [(point["at_s"], point["value"]) for point in curve],
        "rows": [{"method": method, "seed": seed, **row} for row in store.measurements(run.id)],
    }


def _count_data(runs: list[dict[str, Any]]) -> None:
    """Runs of one seed share the FP16 model's answers, which the first of them wrote; count that time for each."""
    for run in runs:
        others = [one["stages"]["data"] for one in runs if one["seed"] == run["seed"]]
        run["stages"]["data"] = max(others)
        run["seconds"] = sum(run["stages"].values())


def _time_row(run: dict[str, Any]) -> dict[str, Any]:
    stages = {name: round(run["stages"].get(name, 0)) for name in STAGES}
    peak = f"{run['peak_bytes'] / 1e9:.1f} GB" if run["peak_bytes"] else None
    return (
        {"method": run["method"], "seed": run["seed"], "s": round(run["seconds"])}
        | stages
        | {"peak": peak}
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
