"""Grids and rotations side by side: quality, sizes, time, speed and ways out, one run a row with one budget.

python -m bench.grids --data-dir FOLDER --json grids.json

A run that stands in --data-dir with the same settings is taken over, so the table can be made in several sittings; the
FP16 model's answers are written once for all. Speeds are measured when all rows are there, the models taking turns.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.cpu_decode import EngineRunner
from bench.quantization import finished_run
from upq.config import PRECISIONS, RunConfig, preset, with_settings
from upq.jobs import Models, exports
from upq.models.source import BUNDLED
from upq.store import Run, Store, open_store

_ODD = {"int2.grid": "odd", "int2.group_size": 64}
_PLAIN = {"int4.rotation": "none", "int4.hessian": "normalized", "int2.rotation": "none"}
_ABSORBED = {**_PLAIN, "int4.rotation": "absorbed", "int2.rotation": "absorbed"}
#: Name of the row -> the method and what is changed of its preset.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "signed and odd, no rotation": ("rotated_upq", _ODD | _PLAIN),
    "signed and odd, absorbed": ("rotated_upq", _ODD | _ABSORBED),
    "signed and odd, inputs": ("rotated_upq", _ODD),
    "signed and q2_k, no rotation": ("rotated_upq", _PLAIN),
    "signed and q2_k, inputs": ("rotated_upq", {}),
    "signed and gguf, no rotation": ("portable_upq", {}),
    "signed and gguf, absorbed": ("portable_upq", _ABSORBED),
}
QUANTIZED = PRECISIONS[1:]
#: Tokens that are written behind as many, and how often.
TOKENS, ROUNDS = 128, 9


def main() -> None:
    """Make the rows that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--data-dir", type=Path, required=True, help="keep the runs there")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    runs = {
        name: finished_run(options.data_dir, config(options.preset, name)) for name in options.rows
    }
    store = open_store(options.data_dir)
    speeds = tokens_per_s(store, runs)
    rows = [row(store, name, run) | speeds[name] for name, run in runs.items()]
    report.show(rows)
    fp16 = speeds["FP16"]["FP16 tokens/s"]
    print(f"FP16 in the same rounds: {fp16:.0f} tokens/s")
    report.save(options.json, rows, preset=options.preset, fp16_tokens_per_s=fp16)


def config(name_of_preset: str, name: str) -> RunConfig:
    """The settings of a row."""
    method, changes = ROWS[name]
    return with_settings(preset(name_of_preset, method), changes)


def row(store: Store, name: str, run: Run) -> dict[str, Any]:
    """What a run came to. seconds: of all its stages but the FP16 model's answers, which rows share."""
    found = {one["label"]: one["extra"] | one for one in store.measurements(run.id)}
    cells: dict[str, Any] = {"INT4 and INT2": name}
    for precision in QUANTIZED:
        one = found[precision]
        cells |= {
            f"{precision} bits": round(one["bits_per_weight"], 2),
            f"{precision} MB": round(one["size_bytes"] / 1e6, 1),
            f"{precision} KL": f"{one['kl']:.3f} ({one['kl_low']:.3f} to {one['kl_high']:.3f})",
            f"{precision} top-1": f"{one['top1']:.1%}",
        }
    cells["seconds"] = round(
        sum(stage["seconds"] for at, stage in run.stages.items() if at not in ("data", "measure"))
    )
    for precision in QUANTIZED:
        offers = exports.offers(exports.model_of(store, run.id, precision))
        leaves = [
            f"{one['title']} at {one['bits_per_weight']:.3g} bits"
            for one in offers
            if "why_not" not in one
        ]
        cells[f"{precision} leaves as"] = "; ".join(leaves)
    cells["tokens"] = found["INT2"]["tokens"]
    return cells


def tokens_per_s(store: Store, runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    """Of each row, and of FP16 as a row of its own: tokens of one answer a second, in the median of the rounds."""
    models = Models(store)
    readers = {("FP16", "FP16"): models.get(None, "FP16", BUNDLED)}
    for name, run in runs.items():
        for precision in QUANTIZED:
            readers[name, precision] = models.get(run.id, precision, run.model)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in readers}
    for _ in range(ROUNDS):
        for key, served in readers.items():
            seconds[key].append(EngineRunner(served.engine).write(TOKENS, 1, TOKENS))
    rows: dict[str, dict[str, float]] = {}
    for (name, precision), took in seconds.items():
        speed = round(TOKENS / statistics.median(took), 1)
        rows.setdefault(name, {})[f"{precision} tokens/s"] = speed
    return rows


if __name__ == "__main__":
    main()
