"""A run on a GPU that may be cut into calls of some minutes, and what it made as files small enough to carry away.

python -m bench.gpu_training --data-dir build/gpu-run --out build/gpu --seconds 480 --set int2.distill.tokens=2000000

The first call queues the run, every further one with the same data folder goes on where the last one stopped. When it
is done its measurements and, for each precision asked for, the quantized layers and the norms with their manifest are
written to --out; `cat INT2.safetensors.* > INT2.safetensors` joins the parts. Embedding and head are not among them,
since they are made of the base model without training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save

from bench import report
from upq.artifact import Artifact
from upq.config import METHODS, PRESETS, preset, with_settings
from upq.jobs import Supervisor, follow
from upq.store import Run, Store, data_dir, open_store


def main() -> None:
    """Start or continue the run; exit code 0 also where the time is up and another call is needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder of the run, kept between calls")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=480.0, help="longest time of this call")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--method", default="rotated_upq", choices=METHODS)
    parser.add_argument("--preset", default="standard", choices=PRESETS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--carry", nargs="*", default=["INT2"], help="precisions to write as files")
    parser.add_argument("--part-mb", type=float, default=15.0, help="largest size of a part")
    options = parser.parse_args()
    folder = data_dir(options.data_dir)
    store = open_store(folder)
    if not store.runs():
        changes = dict(pair.split("=", 1) for pair in options.set)
        start = preset(options.preset, options.method)
        store.enqueue(with_settings(start, {"model.source": options.model} | changes))
    run = _go_on(store, folder, time.monotonic() + options.seconds)
    if run.state not in follow.ENDED:
        print(f"run {run.id} stopped at {run.stage} {run.stage_step}/{run.stage_total}: call again")
        return
    if run.state != "done":
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    options.out.mkdir(parents=True, exist_ok=True)
    result = follow.summary(store, run.id)
    rows = result["artifacts"] + result["baselines"]
    report.show(rows)
    report.save(options.out / "training.json", rows, run=result, config=run.config)
    for precision in options.carry:
        artifact = store.load_artifact(run.id, precision)
        write_parts(artifact, options.out, int(options.part_mb * 1e6))


def _go_on(store: Store, folder: Path, until: float) -> Run:
    """Keep a worker on the newest run until it ends or the time is up, in which case it stays resumable."""
    run_id = store.runs()[0].id
    supervisor = Supervisor(store, folder)
    supervisor.start()
    try:
        while store.run(run_id).state not in follow.ENDED and time.monotonic() < until:
            time.sleep(1)
    finally:
        supervisor.stop()
    return store.run(run_id)


def write_parts(artifact: Artifact, out: Path, part_bytes: int) -> None:
    """Write manifest and layers of an artifact as PRECISION.json and PRECISION.safetensors.00, .01, ..."""
    tensors = carried(artifact)
    content = save(tensors)
    for index, start in enumerate(range(0, len(content), part_bytes)):
        part = out / f"{artifact.precision}.safetensors.{index:02d}"
        part.write_bytes(content[start : start + part_bytes])
    manifest = json.dumps(artifact.manifest, indent=1)
    (out / f"{artifact.precision}.json").write_text(manifest, encoding="utf-8")
    print(f"{artifact.precision}: {len(content) / 1e6:.1f} MB, {len(tensors)} tensors")


def carried(artifact: Artifact) -> dict[str, Any]:
    """The tensors that training made: those of layers of fewer than 8 bits, and the vectors outside of layers."""
    layers: dict[str, Any] = artifact.manifest["layers"]
    kept = {}
    for name, tensor in artifact.tensors.items():
        layer = layers.get(name.rpartition(".")[0])
        if layer["bits"] < 8 if layer else tensor.ndim == 1:
            kept[name] = tensor.contiguous()
    return kept


if __name__ == "__main__":
    main()
