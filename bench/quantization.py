"""Quality, size and time of every method on one model, under the same data and token budget.

    python -m bench.quantization --preset quick --seeds 0 1 --json results.json --plot kl.svg

A run that stands in --data-dir with the same settings is taken over instead of made again, at the commit it was made.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import report
from upq.config import METHODS, Precision, RunConfig, preset, with_settings
from upq.context import STAGES, SeriesNames
from upq.jobs import follow
from upq.store import Run, Store, open_store

INT2 = SeriesNames(Precision.INT2.key)
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
    parser.add_argument("--plot", type=Path, help="draw INT2's KL against minutes here, as SVG")
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
    if options.plot:
        curves = {f"{run['method']}, seed {run['seed']}": _minutes(run) for run in runs}
        report.draw_curves(options.plot, curves, "minutes", "INT2: KL to FP16, nats")


def _measure(folder: Path, options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    changes = {"model.source": options.model, "seed": seed}
    run = finished_run(folder, with_settings(preset(options.preset, method), changes))
    store = open_store(folder)
    points = store.metrics(run.id)
    speeds = [
        point["value"] for point in points if point["series"] == INT2.over_steps("tokens_per_s")
    ]
    curve = [point for point in points if point["series"] == INT2.held_out_kl]
    return {
        "method": method,
        "seed": seed,
        "commits": sorted({one["commit"] for one in run.environments}),
        "stages": {name: one["seconds"] for name, one in run.stages.items()},
        "distillation_tokens_per_s": sorted(speeds)[len(speeds) // 2] if speeds else None,
        "peak_bytes": run.peak_bytes,
        "gpu_peak_bytes": run.gpu_peak_bytes,
        "kl_curve": [(point["at_s"], point["value"]) for point in curve],
        "rows": [{"method": method, "seed": seed, **row} for row in store.measurements(run.id)],
    }


def finished_run(folder: Path, config: RunConfig) -> Run:
    """The run of these settings in a data folder, made if it is not there. Exits with the error of one that fails."""
    run = _finished(open_store(folder), config)
    if run is None:
        run = follow.run_and_wait(folder, lambda store: store.enqueue(config), _say)
    if run.state != "done":
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    return run


def _finished(store: Store, config: RunConfig) -> Run | None:
    """The newest run of exactly these settings that is done."""
    done = [run for run in store.runs(kind="quantize") if run.state == "done"]
    return next((run for run in done if RunConfig.from_values(run.config) == config), None)


def _minutes(run: dict[str, Any]) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """(minutes of work, KL of INT2): the probes on the way; and all held-out answers, at the end of the training."""
    probes = [((at + run["shared_s"]) / 60, kl) for at, kl in run["kl_curve"]]
    kl = next(row["kl"] for row in run["rows"] if row["label"] == "INT2")
    return probes, ((run["seconds"] - run["stages"].get("measure", 0.0)) / 60, kl)


def _count_data(runs: list[dict[str, Any]]) -> None:
    """Runs of one seed share the FP16 model's answers, which the first of them wrote; count that time for each.

    shared_s: seconds that a run saved because another one had written the answers.
    """
    for run in runs:
        longest = max(one["stages"]["data"] for one in runs if one["seed"] == run["seed"])
        run["shared_s"] = longest - run["stages"]["data"]
        run["seconds"] = sum(run["stages"].values()) + run["shared_s"]


def _time_row(run: dict[str, Any]) -> dict[str, Any]:
    stages = {name: round(run["stages"].get(name, 0)) for name in STAGES}
    peaks = {name: run[f"{name}_bytes"] for name in ("peak", "gpu_peak")}
    return (
        {"method": run["method"], "seed": run["seed"], "s": round(run["seconds"])}
        | stages
        | {f"{name} GB": round(one / 1e9, 1) for name, one in peaks.items() if one}
    )


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
