"""UPQ's open questions, answered by measurement: one change a row, the same training tokens for each.

    python -m bench.ablations --json build/bench/ablations.json

Every row is a whole run in a data folder of its own; all share the FP16 model's answers. Rows that stand in the JSON
file already are kept, so the table can be made in several sittings. Measured on the base row's held-out answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import report
from upq import data
from upq.config import RunConfig, preset, with_settings
from upq.context import SilentContext
from upq.jobs import run_and_wait
from upq.quantize import Yardstick, pipeline
from upq.store import Store, open_store

#: Small enough that two cores make a row in about three minutes; the INT4 stage, where it counts, is block-wise.
BASE = {
    "measure.baselines": False,
    "int4.blockwise.tokens": 4000,
    "int2.blockwise.tokens": 6000,
    "int2.blockwise.epochs": 1,
    "int2.distill.tokens": 12_000,
}
_DISTILL_ONLY = {"int2.blockwise.epochs": 0, "int2.distill.weight_lr": 1e-3}
_LDLQ = {"int2.rounding": "ldlq"}
#: Name of the row -> what it changes. {data} is the folder of evaluation data.
ROWS: dict[str, dict[str, Any]] = {
    "base: UPQ, INT4 first, JSD 0.5, searched scales, group 64, own answers": {},
    "without the INT4 stage": {"int2.start": "fp16"},
    "forward KL (beta 0)": {"int2.distill.beta": 0.0},
    "beta 0.1": {"int2.distill.beta": 0.1},
    "beta 0.9": {"int2.distill.beta": 0.9},
    "reverse KL (beta 1)": {"int2.distill.beta": 1.0},
    "next token": {"int2.distill.loss": "next_token"},
    "first scale: abs-max": {"int2.scale_init": "absmax"},
    "first codes: LDLQ": _LDLQ,
    "per channel": {"int4.group_size": 0, "int2.group_size": 0},
    "plain text (textbooks)": {
        "data.source": "file",
        "data.path": "{data}/openstax.txt",
        "data.text_column": "text",
    },
    "chat data (Dolly)": {
        "data.source": "file",
        "data.path": "{data}/dolly15k.jsonl",
        "data.prompt_column": "instruction",
        "data.answer_column": "response",
    },
    "distillation alone": _DISTILL_ONLY,
    "distillation alone, without the INT4 stage": _DISTILL_ONLY | {"int2.start": "fp16"},
    "rotated inputs and LDLQ": _LDLQ | {"int2.rotation": "input", "int2.descent_passes": 1},
    "rotated inputs and LDLQ, without the INT4 stage": _LDLQ
    | {"int2.rotation": "input", "int2.descent_passes": 1, "int2.start": "fp16"},
}


def main() -> None:
    """Make the rows that are missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("build/bench/ablations.json"))
    parser.add_argument("--data-dir", type=Path, help="folder of the runs (default: beside --json)")
    parser.add_argument("--rows", type=int, help="make at most so many of the missing rows")
    options = parser.parse_args()
    folder = options.data_dir or options.json.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    wanted = [name for name in ROWS if name not in {row["row"] for row in rows}]
    measure: Callable[[Store, int], dict[str, dict[str, Any]]] | None = None
    for name in wanted[: options.rows]:
        run = run_and_wait(folder, lambda store, name=name: store.enqueue(_config(name)), _say)
        if run.state != "done":
            sys.exit(f"{name}: {run.error_message} {run.error_hint}".strip())
        measure = measure or _measurer(folder)
        rows.append(_row(name, open_store(folder), run.id, measure))
        report.save(options.json, rows, seed=0, base=BASE)
    report.show([{key: row[key] for key in row if key != "changes"} for row in rows])


def _config(name: str) -> RunConfig:
    evaluation = os.environ.get("UPQ_DATA", "../shared/data")
    changes = {
        path: value.format(data=evaluation) if isinstance(value, str) else value
        for path, value in ROWS[name].items()
    }
    return with_settings(preset("quick", "upq"), BASE | changes)


def _row(
    name: str, store: Store, run_id: int, measure: Callable[[Store, int], dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    run, found = store.run(run_id), measure(store, run_id)
    return {
        "row": name,
        **{f"{one} KL": row["kl"] for one, row in found.items()},
        **{f"{one} top-1": row["top1"] for one, row in found.items()},
        "held-out tokens": found["INT2"]["tokens"],
        "seconds": run.worked_s,
        "changes": ROWS[name],
    }


def _measurer(folder: Path) -> Callable[[Store, int], dict[str, dict[str, Any]]]:
    """Fidelity of a run's artifacts on the held-out answers of the base row, whatever the run was trained on."""
    config = with_settings(preset("quick", "upq"), BASE)
    loaded, teacher = pipeline.load_teacher(config)
    store = open_store(folder)
    context = SilentContext(folder, store.cached_answers, store.save_answers)
    examples = data.held_out(config, replace(loaded, model=teacher), context)
    yardstick = Yardstick(teacher, examples, context.check)

    def measure(store: Store, run_id: int) -> dict[str, dict[str, Any]]:
        kept = {one: store.load_artifact(run_id, one) for one in ("INT4", "INT2")}
        return {
            one: yardstick.row(one, artifact, yardstick.assembled(artifact))
            for one, artifact in kept.items()
        }

    return measure


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
