"""Quality, size and time of every method on one model, under the same data and token budget.

python -m bench.quantization --preset quick --seeds 0 1 --json results.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import report
from upq import commands
from upq.config import METHODS, with_settings
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
    """Run the benchmark and print its table as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            _measure(Path(folder), options, method, seed)
            for method in options.methods
            for seed in options.seeds
        ]
    rows = [row for run in runs for row in run["rows"]]
    table = [[row[name] for name in COLUMNS] for row in rows]
    sys.stdout.write(tabulate(table, headers=COLUMNS, tablefmt="github", floatfmt=".3f") + "\n")
    for run in runs:
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run["stages"].items())
        sys.stdout.write(
            f"{run['method']}, seed {run['seed']}: {run['seconds']:.0f} s ({stages})\n"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"machine": report.machine(), "runs": runs}, indent=1), encoding="utf-8"
        )


def _measure(folder: Path, options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    changes = {"model.source": options.model, "seed": seed}
    config = with_settings(preset(options.preset, method), changes)
    run = commands.run_and_wait(folder, lambda store: store.enqueue(config), _say)
    if run.state != "done":
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    store = open_store(folder)
    rows = [{"method": method, "seed": seed, **row} for row in store.measurements(run.id)]
    speeds = [
        point["value"] for point in store.metrics(run.id) if point["series"] == "tokens_per_s"
    ]
    return {
        "method": method,
        "seed": seed,
        "seconds": (run.ended_at or 0) - (run.started_at or 0),
        "stages": {name: (one["ended"] or 0) - one["started"] for name, one in run.stages.items()},
        "distillation_tokens_per_s": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "peak_bytes": run.peak_bytes,
        "rows": rows,
    }


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
