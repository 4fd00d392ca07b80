"""Two programs on one machine: what each still does beside the other, as a share of what it does alone.

python -m bench.together --json together.json

Where threads wait for one another by spinning, two programs with as many threads as there are cores slow each other by
far more than twofold. The sum of both shares is 1 where nothing is lost, and at least ALLOWED here. Every program is a
process of its own with the app's threads and takes turns as the app's do (upq.jobs.turns); a run has a worker's low
priority as well. A check writes many answers in the background, a chat one that somebody reads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import report
from upq.config import DistillConfig
from upq.context import SilentContext
from upq.data import Example
from upq.decode import NativeEngine
from upq.evaluation import Reference
from upq.jobs import Turns, answering
from upq.jobs.worker import give_way
from upq.layers import INT2, FakeQuantLinear, Latent, PackedLinear, replace_module, swap_linears
from upq.models import LoadedModel, copy_to_quantize, load, plan_layers
from upq.models.source import BUNDLED
from upq.training.distill import Distillation, distill

#: The least sum of both shares.
ALLOWED = 0.8
START_S = 300.0
GROUP = 64
TOKENS = 128
ANSWER = 64
CHECK_ROWS = 16
Tick = Callable[[], None]


def main() -> int:
    """Measure every program alone and every pair, print a table; 1 if a pair loses too much."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    names = sorted({name for pair in PAIRS for name in pair})
    alone = {name: _rates([name], options.seconds)[0] for name in names}
    rows = []
    for pair in PAIRS:
        shares = [
            rate / alone[name]
            for name, rate in zip(pair, _rates(pair, options.seconds), strict=True)
        ]
        row = {"first": pair[0], "second": pair[1], "share of first": shares[0]}
        rows.append(row | {"share of second": shares[1], "sum": sum(shares)})
    report.show([{"program": name, "units/s alone": rate} for name, rate in alone.items()])
    report.show(rows)
    report.save(options.json, rows, alone=alone, seconds=options.seconds)
    lost = [row for row in rows if row["sum"] < ALLOWED]
    for row in lost:
        sys.stdout.write(f"{row['first']} beside {row['second']}: {row['sum']:.2f}\n")
    return 1 if lost else 0


@dataclass
class _Program:
    """A process that says how many units of work it has finished, and when the last one was."""

    name: str
    units: Any = field(default_factory=lambda: multiprocessing.get_context("spawn").Array("d", 2))

    def look(self) -> tuple[float, float]:
        """(units finished, monotonic seconds at the end of the last one)."""
        with self.units.get_lock():
            return self.units[0], self.units[1]


def _rates(names: Sequence[str], seconds: float) -> list[float]:
    """Units per second of programs that run at the same time."""
    with ExitStack() as stack:
        programs = [stack.enter_context(_running(name)) for name in names]
        until = time.monotonic() + START_S
        while any(program.look()[0] < 1 for program in programs):
            if time.monotonic() > until:
                raise RuntimeError(f"{' and '.join(names)} did not start")
            time.sleep(0.1)
        before = [program.look() for program in programs]
        time.sleep(seconds)
        after = [program.look() for program in programs]
    return [_rate(*ends, seconds) for ends in zip(before, after, strict=True)]


def _rate(before: tuple[float, float], after: tuple[float, float], seconds: float) -> float:
    """Whole units between two ends of units; a program that finished none did less than one in all the time."""
    done = after[0] - before[0]
    return done / (after[1] - before[1]) if done else 0.5 / seconds


@contextmanager
def _running(name: str) -> Iterator[_Program]:
    program = _Program(name)
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(name, program.units), daemon=True
    )
    process.start()
    try:
        yield program
    finally:
        process.kill()
        process.join()


def _work(name: str, units: Any) -> None:
    """A process's whole life: one program, over and over."""
    os.setsid()
    torch.set_num_threads(os.cpu_count() or 1)

    def tick() -> None:
        with units.get_lock():
            units[0], units[1] = units[0] + 1, time.monotonic()

    PROGRAMS[name](tick)


def _chat(tick: Tick) -> None:
    _write(1, tick)


def _check(tick: Tick) -> None:
    _write(CHECK_ROWS, tick)


def _write(rows: int, tick: Tick) -> None:
    """The C engine writes answers of ANSWER tokens with INT2, some of them at a time; a unit is a step of all."""
    loaded = load(BUNDLED)
    for name, packed in _rounded(loaded).items():
        replace_module(loaded.model, name, PackedLinear(packed))
    engine = NativeEngine(loaded.model)
    prompt = list(range(100, 100 + TOKENS))
    turns = Turns()
    while True:
        session = engine.session(rows, TOKENS + ANSWER + 1)
        with nullcontext() if rows > 1 else answering():
            tokens = [int(session.prefill(row, prompt).argmax()) for row in range(rows)]
            for _ in range(ANSWER):
                if rows > 1:
                    turns.wait(_nothing)
                tokens = session.step(list(range(rows)), tokens).argmax(-1).tolist()
                tick()


def _evaluation(tick: Tick) -> None:
    """KL of a model to itself by torch; a unit is one answer."""
    loaded, turns = load(BUNDLED), Turns()
    while True:
        turns.wait(_nothing)
        reference = Reference(loaded.model, _examples(1), _nothing)
        reference.measure(loaded.model, _nothing)
        tick()


def _nothing() -> None: ...


def _run(tick: Tick) -> None:
    """A distillation at a worker's low priority, as all runs are; a unit is one step of TOKENS tokens."""
    loaded = load(BUNDLED)
    names = _linears(loaded)
    student = copy_to_quantize(loaded.model, names)

    def make(_: str, linear: torch.nn.Linear) -> FakeQuantLinear:
        scale, _zero = INT2.fit(linear.weight, GROUP, "absmax")
        return FakeQuantLinear(Latent(linear.weight, scale), linear.bias, INT2)

    swap_linears(student, names, make)
    config = DistillConfig(tokens=TOKENS * 10_000, batch_tokens=TOKENS)
    give_way()
    with tempfile.TemporaryDirectory() as folder:
        distill(
            Distillation(student, loaded.model, _examples(8), config),
            _Ticking(Path(folder), tick),
        )


class _Ticking(SilentContext):
    """Counts finished steps."""

    def __init__(self, folder: Path, tick: Tick) -> None:
        super().__init__(folder)
        self.tick, self.turns = tick, Turns()

    def check(self, *, kept: bool = False) -> None:
        self.turns.wait(_nothing)

    def progress(self, step: int, *, tokens_per_s: float | None = None, detail: str = "") -> None:
        self.tick()


def _linears(loaded: LoadedModel) -> list[str]:
    return [layer.name for layer in plan_layers(loaded.model, GROUP) if layer.quantize]


def _rounded(loaded: LoadedModel) -> dict[str, Any]:
    """INT2 weights, rounded to nearest: speed does not depend on how codes were chosen."""
    packed = {}
    for name in _linears(loaded):
        weight = loaded.model.get_parameter(f"{name}.weight").detach()
        packed[name] = INT2.pack(weight, *INT2.fit(weight, GROUP, "absmax"))
    return packed


def _examples(count: int) -> list[Example]:
    return [Example(tuple(range(100 + row, 100 + row + TOKENS)), 1) for row in range(count)]


PROGRAMS: dict[str, Callable[[Tick], None]] = {
    "chat": _chat,
    "check": _check,
    "evaluation": _evaluation,
    "run": _run,
}
PAIRS = (
    ("run", "chat"),
    ("run", "check"),
    ("run", "evaluation"),
    ("run", "run"),
    ("evaluation", "evaluation"),
    ("chat", "chat"),
    ("check", "check"),
)


if __name__ == "__main__":
    sys.exit(main())
