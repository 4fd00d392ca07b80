"""A run on a GPU that may be cut into calls of some minutes, and what it made as files small enough to carry away.

python -m bench.gpu_training --data-dir build/gpu-run --out build/gpu --seconds 480 --carry INT4 INT2

The first call queues the run, every further one with the same data folder goes on where the last one stopped. With
settings `distill.seconds` training fills the time: it ends when --reserve seconds are left for packing and measuring.
Each precision is written as soon as it is finished, as scripts.ship_demo keeps it: PRECISION.json and PRECISION.npz, in
parts .00, .01, ... where that is long; run.json has the rest. `python -m scripts.ship_demo --carried FOLDER` makes the
shipped models of them. With --raw it is the packed layers themselves, as safetensors, for any other model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save

from bench import report
from scripts import ship_demo
from upq.artifact import Artifact
from upq.config import METHODS, PRESETS, preset, with_settings
from upq.jobs import Supervisor, follow
from upq.models import LoadedModel, load
from upq.quantize.ready import ready
from upq.store import Run, Store, data_dir, open_store
from upq.training import UNTIL

#: Workers in a row that fail at their start before the call gives up and shows what they said.
MOST_EARLY_EXITS = 2
LOG_CHARACTERS = 4000


def main() -> None:
    """Start or continue the run; exit code 0 also where the time is up and another call is needed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="folder of the run, kept between calls")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=480.0, help="longest time of this call")
    parser.add_argument(
        "--reserve", type=float, default=60.0, help="of it for what follows training"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--method", default="rotated_upq", choices=METHODS)
    parser.add_argument("--preset", default="lease", choices=PRESETS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--carry", nargs="*", default=["INT2"], help="precisions to write as files")
    parser.add_argument("--raw", action="store_true", help="write packed layers, not differences")
    parser.add_argument("--json", type=Path, help="write the measurements there as well")
    parser.add_argument("--part-mb", type=float, default=15.0, help="largest size of a part")
    options = parser.parse_args()
    started = time.monotonic()
    os.environ[UNTIL] = str(time.time() + options.seconds - options.reserve)
    folder = data_dir(options.data_dir)
    store = open_store(folder)
    if not store.runs():
        changes = dict(pair.split("=", 1) for pair in options.set)
        start = preset(options.preset, options.method)
        config = with_settings(start, {"model.source": options.model} | changes)
        store.enqueue(ready(config, changes))
    options.out.mkdir(parents=True, exist_ok=True)
    carrier = _Carrier(store, options)
    run = _go_on(store, folder, started + options.seconds, carrier)
    if run.state not in follow.ENDED:
        carrier.look(run.id)
        print(f"run {run.id} stopped at {run.stage} {run.stage_step}/{run.stage_total}: call again")
        _show_log(store, run.id)
        return
    if run.state != "done":
        _show_log(store, run.id)
        print(_said(folder))
        sys.exit(f"{run.error_message} {run.error_hint}".strip())
    carrier.finished(run.id)
    result = follow.summary(store, run.id)
    rows = result["artifacts"] + result["baselines"]
    _show_log(store, run.id)
    report.show(rows)
    if options.json:
        report.save(options.json, rows, run=result, config=run.config)


def _go_on(store: Store, folder: Path, until: float, carrier: _Carrier) -> Run:
    """Keep a worker on the newest run until it ends or the time is up, in which case it stays resumable. Exits where
    workers fail at their start.
    """
    run_id = store.runs()[0].id
    supervisor = Supervisor(store, folder)
    supervisor.start()
    shown = ""
    try:
        while store.run(run_id).state not in follow.ENDED and time.monotonic() < until:
            time.sleep(0.5)
            run, status = store.run(run_id), supervisor.status()
            if status["early_exits"] >= MOST_EARLY_EXITS:
                print(_said(folder))
                sys.exit(f"{MOST_EARLY_EXITS} workers failed at their start: {status['last_exit']}")
            if run.stage and run.stage != shown:
                shown = run.stage
                print(f"{time.strftime('%H:%M:%S')} {shown}", flush=True)
            carrier.look(run_id)
    finally:
        supervisor.stop()
    return store.run(run_id)


def _said(folder: Path) -> str:
    """The end of what workers wrote."""
    log = folder / "logs" / "worker.log"
    return (
        log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:] if log.is_file() else ""
    )


class _Carrier:
    """Writes each precision of a run once, as soon as it is stored."""

    def __init__(self, store: Store, options: argparse.Namespace) -> None:
        self.store, self.options = store, options
        self.done: set[str] = set()
        self.loaded: LoadedModel | None = None

    def look(self, run_id: int) -> None:
        """Write what has been finished since the last look."""
        for row in self.store.artifacts(run_id):
            if row.precision in self.options.carry and row.precision not in self.done:
                self.done.add(row.precision)
                self._write(self.store.load_artifact(run_id, row.precision))

    def finished(self, run_id: int) -> None:
        """Write what is left, and what there is to say of the run."""
        self.look(run_id)
        facts = json.dumps(ship_demo.facts(self.store, run_id), sort_keys=True)
        (self.options.out / "run.json").write_text(facts, encoding="utf-8")

    def _write(self, artifact: Artifact) -> None:
        out, part_bytes = self.options.out, int(self.options.part_mb * 1e6)
        if self.options.raw:
            write_parts(artifact, out, part_bytes)
            return
        self.loaded = self.loaded or load(self.options.model)
        path = out / f"{artifact.precision}.npz"
        ship_demo.write(artifact, self.loaded, path)
        description = json.dumps(ship_demo.description(artifact), sort_keys=True)
        (out / f"{artifact.precision}.json").write_text(description, encoding="utf-8")
        if path.stat().st_size > part_bytes:
            _split(path.read_bytes(), out, path.name, part_bytes)
            path.unlink()


def _show_log(store: Store, run_id: int) -> None:
    for _, line in store.log_lines(run_id):
        print(line)


def _split(content: bytes, out: Path, name: str, part_bytes: int) -> None:
    for index, start in enumerate(range(0, len(content), part_bytes)):
        part = out / f"{name}.{index:02d}"
        part.write_bytes(content[start : start + part_bytes])


def write_parts(artifact: Artifact, out: Path, part_bytes: int) -> None:
    """Write manifest and layers of an artifact as PRECISION.json and PRECISION.safetensors.00, .01, ..."""
    tensors = carried(artifact)
    content = save(tensors)
    _split(content, out, f"{artifact.precision}.safetensors", part_bytes)
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
