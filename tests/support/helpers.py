"""What tests of the engine share: a run context that keeps lists, small configs, digests of results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from kernels.packing import PackedWeight
from upq.artifact import Artifact
from upq.config import RunConfig, preset, settings, with_settings
from upq.data import Example
from upq.quantize.pipeline import run_quantization

#: The smoke preset, small enough for the tiny model: a run takes about two seconds.
TINY_SETTINGS: dict[str, Any] = {
    "data.max_rows": 6,
    "data.held_out": 3,
    "data.answer_tokens": 8,
    "data.sequence_tokens": 160,
    "measure.answer_tokens": 8,
    "int4.group_size": 32,
    "int4.blockwise.tokens": 300,
    "int4.blockwise.batch_tokens": 320,
    "int2.group_size": 32,
    "int4.distill.tokens": 600,
    "int4.distill.batch_tokens": 320,
    "int4.distill.checkpoint_seconds": 0.0,
    "int2.blockwise.tokens": 300,
    "int2.blockwise.batch_tokens": 320,
    "int2.distill.tokens": 1500,
    "int2.distill.batch_tokens": 320,
    "int2.distill.checkpoint_seconds": 0.0,
}


def tiny_config(model: Path, method: str = "upq", **changes: Any) -> RunConfig:
    """A run of the tiny model; keywords are settings with two underscores for a dot.

    What the method does without, such as tokens of a stage, is 0 in the preset and stays 0.
    """
    start = preset("smoke", method)
    given = {path: spec["value"] for path, spec in settings(start)}
    sizes = {path: value for path, value in TINY_SETTINGS.items() if given[path]}
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return with_settings(start, {"model.source": str(model), "threads": 1, **sizes, **dotted})


class RecordingContext:
    """A RunContext that keeps everything in lists; `stop` is called by check and may raise."""

    def __init__(self, folder: Path, stop: Callable[[], None] = lambda: None) -> None:
        self.folder, self.stop = folder, stop
        self.stages: list[tuple[str, int]] = []
        self.steps: list[tuple[str, int]] = []
        self.points: list[tuple[str, int, float]] = []
        self.flushed = 0
        self.lines: list[str] = []
        self.answers: dict[str, dict[str, list[int]]] = {}
        self.saved_answers: list[str] = []
        self.artifacts: dict[str, Artifact] = {}
        self.rows: list[dict[str, Any]] = []
        self.verdicts: list[dict[str, Any]] = []

    @property
    def checkpoint_dir(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder

    def check(self, *, kept: bool = False) -> None:
        self.stop()

    def flush(self) -> None:
        self.flushed = len(self.points)

    def stage(self, name: str, total: int) -> None:
        self.stages.append((name, total))

    def progress(self, step: int, *, tokens_per_s: float | None = None, detail: str = "") -> None:
        self.steps.append((self.stages[-1][0] if self.stages else "", step))

    def metric(self, series: str, step: int, value: float) -> None:
        self.points.append((series, step, value))

    def log(self, message: str) -> None:
        self.lines.append(message)

    def cached_answers(self, key: str) -> dict[str, list[int]]:
        return self.answers.get(key, {})

    def save_answers(self, key: str, answers: Mapping[str, list[int]]) -> None:
        self.saved_answers.append(key)
        self.answers.setdefault(key, {}).update(answers)

    def save_artifact(self, artifact: Artifact) -> None:
        self.artifacts.setdefault(artifact.precision, artifact)

    def save_measurements(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows += map(dict, rows)

    def save_check_result(self, precision: str, position: int, result: dict[str, Any]) -> None:
        self.verdicts.append({"precision": precision, "position": position, "result": result})

    def check_results(self) -> list[dict[str, Any]]:
        return self.verdicts

    def curve(self, series: str) -> dict[int, float]:
        """step -> value of one series."""
        return {step: value for name, step, value in self.points if name == series}


class Stop(Exception):
    """What stop_after raises, in the place of Cancelled or a kill."""


def stop_after(calls: int) -> Callable[[], None]:
    """A function that raises Stop from its call number `calls` on."""
    left = [calls]

    def stop() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Stop

    return stop


def examples(count: int, tokens: int = 24, seed: int = 0) -> list[Example]:
    """Random sequences for the tiny model, of slightly different lengths; the second half counts."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = tokens - index % 3
        ids = torch.randint(6, 262, (length,), generator=generator).tolist()
        made.append(Example(tuple(ids), length // 2))
    return made


def digest(artifact: Artifact) -> str:
    """sha256 over the names and bytes of an artifact's tensors."""
    state = hashlib.sha256()
    for name, tensor in sorted(artifact.tensors.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def digests(context: RecordingContext) -> dict[str, str]:
    """Precision -> digest of the artifact that a run has saved."""
    return {name: digest(artifact) for name, artifact in context.artifacts.items()}


def quantized(
    config: RunConfig, folder: Path, stop: Callable[[], None] = lambda: None
) -> RecordingContext:
    """What a run has reported at its end. stop: called at every check; it may raise."""
    context = RecordingContext(folder, stop)
    run_quantization(config, context)
    return context


def naive_weight(packed: PackedWeight) -> torch.Tensor:
    """The weight that packed codes stand for, one element at a time in float32."""
    rows, columns = packed.shape
    group, per_byte = columns // packed.scale.shape[1], 8 // packed.bits
    weight = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            byte = int(packed.codes[row, column // per_byte])
            code = byte >> (packed.bits * (column % per_byte)) & (2**packed.bits - 1)
            weight[row, column] = (code - packed.zero) * packed.scale[row, column // group].float()
    return weight
