"""Hours and gigabytes of whole runs at real scale, from single blocks with random weights in the shapes of real models.

python -m bench.gpu_scale --json scale.json
python -m bench.gpu_scale --device cpu --tiny      # the same code on tiny shapes, in seconds

No model is needed. Block-wise stages run on one block with two small numbers of calibration batches: the difference
is the time of a batch, which is scaled to the tokens of preset `paper`, and the rest that of a block whatever its data.
Distillation runs a few steps on two shallow models with the whole vocabulary: the difference is what a block takes.
Everything else in the table is multiplication. The model stays on the CPU in block-wise stages, as for a large one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench import gpu_decode, report
from upq.config import DistillConfig, Precision, preset
from upq.context import SeriesNames, SilentContext
from upq.data import Batch, Example
from upq.layers import (
    INT2,
    INT4,
    FakeQuantLinear,
    FixedCodesLinear,
    Form,
    Forms,
    Latent,
    grid_of,
    swap_linears,
)
from upq.models import blocks_away, copy_to_quantize, place, plan_layers
from upq.training import Reconstruction, packed_teacher, reconstruct
from upq.training.distill import Distillation, distill

MODELS = {
    "Llama-3.1-8B": gpu_decode.MODELS["Llama-3.1-8B"],
    "Llama-2-70B": LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
#: EfficientQAT on one A100 for the Llama-2 of like size (arXiv 2407.11062): (model, stage) -> hours, GB.
PUBLISHED = {
    ("Llama-3.1-8B", "Block-AP, INT2"): (3.3, 8.5),
    ("Llama-3.1-8B", "E2E-QP"): (1.5, 5.6),
    ("Llama-2-70B", "Block-AP, INT2"): (26.6, 29.9),
}
#: Block-wise stages: label, method whose preset `paper` has the settings, precision.
STAGES = (
    ("INT4 stage of UPQ", "upq", Precision.INT4),
    ("Block-AP, INT2", "efficientqat", Precision.INT2),
    ("LDLQ, INT2", "gptq", Precision.INT2),
    ("rotated UPQ, INT2", "rotated_upq", Precision.INT2),
)
#: End-to-end stages of an 8B model: label, settings. All with recomputed blocks and 8-bit moments.
SAVING: dict[str, Any] = {"checkpointing": True, "optimizer_bits": 8, "checkpoint_seconds": 86_400}
DISTILLATIONS = (
    ("JSD, INT4 teacher", {"teacher": "int4"}),
    ("JSD, cached teacher", {"teacher": "cached"}),
    ("E2E-QP", {"loss": "next_token", "weight_lr": 0.0}),
)
#: Tokens that the hours of an end-to-end stage are given for: EfficientQAT's.
END_TO_END_TOKENS = 4096 * 4096


@dataclass(frozen=True)
class Size:
    """How much is measured. batches: calibration batches of the two runs; depths: blocks of the two models."""

    sequence: int
    batches: tuple[int, int]
    depths: tuple[int, int]
    batch_tokens: int
    steps: int


FULL = Size(sequence=2048, batches=(2, 6), depths=(1, 3), batch_tokens=8192, steps=5)
SMALL = Size(sequence=16, batches=(1, 2), depths=(1, 2), batch_tokens=32, steps=3)


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a test of this program")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="only these")
    parser.add_argument("--stages", nargs="+", metavar="LABEL", help="only these rows")
    options = parser.parse_args()
    device, size = torch.device(options.device), SMALL if options.tiny else FULL
    models = {"tiny": gpu_decode.TINY} if options.tiny else MODELS
    models = {name: model for name, model in models.items() if name in (options.models or models)}

    def is_asked(label: str) -> bool:
        return not options.stages or label in options.stages

    rows: list[dict[str, Any]] = []
    failed: list[str] = []

    def add(label: str, row: Callable[[], dict[str, Any]]) -> None:
        try:
            rows.append(row())
        except Exception as error:  # the others go on
            failed.append(label)
            print(f"{label}: FAILED {error}\n{traceback.format_exc()}", flush=True)
            return
        print({name: row for name, row in rows[-1].items() if row is not None}, flush=True)
        report.save(options.json, rows, sequence=size.sequence, batches=size.batches)

    for name, shape in models.items():
        for stage in filter(lambda one: is_asked(one[0]), STAGES):
            add(stage[0], partial(stage_row, name, shape, stage, size, device))
    name, shape = next(iter(models.items()))
    for one in filter(lambda one: is_asked(one[0]), DISTILLATIONS):
        add(one[0], partial(distillation_row, name, shape, one, size, device))
    report.show(rows)
    if failed:
        sys.exit(f"Failed: {'; '.join(failed)}")


def stage_row(
    name: str,
    shape: LlamaConfig,
    stage: tuple[str, str, Precision],
    size: Size,
    device: torch.device,
) -> dict[str, Any]:
    """A block-wise stage: measured block, whole run."""
    label, method, precision = stage
    config = preset("paper", method).of(precision)
    rows = max(1, config.blockwise.batch_tokens // FULL.sequence)
    model = _model(resized(shape, 1, vocabulary=1024), device).to("cpu")
    grid = grid_of(config.grid, precision.bits)
    start = {
        layer.name: model.get_submodule(layer.name).weight
        for layer in plan_layers(model, config.group_size)
        if layer.quantize
    }
    task = Reconstruction(model, precision.key, Forms(Form(grid, config.group_size)), config, start)
    few, many = size.batches
    _reconstruct(task, few, rows, size, device)  # compiles and tunes
    (short, _), (long, peak) = (
        _reconstruct(task, count, rows, size, device) for count in (few, many)
    )
    a_batch = max(0.0, (long - short) / (many - few))
    batches = config.blockwise.tokens / (rows * FULL.sequence)
    a_block = max(0.0, short - few * a_batch) + batches * a_batch
    states = 2 * config.blockwise.tokens * shape.hidden_size * 2
    layers = shape.num_hidden_layers
    return _row(name, label, config.blockwise.tokens, a_block, layers * a_block, peak, states)


def distillation_row(
    name: str,
    shape: LlamaConfig,
    stage: tuple[str, dict[str, Any]],
    size: Size,
    device: torch.device,
) -> dict[str, Any]:
    """An end-to-end stage: measured at two depths, scaled to the model's."""
    label, changes = stage
    tokens = size.steps * size.batch_tokens
    settings: dict[str, Any] = {"tokens": tokens, "batch_tokens": size.batch_tokens}
    config = DistillConfig(**settings, **SAVING, **changes)
    shallow, deep = size.depths
    (short, small), (long, large) = (
        _distill(resized(shape, depth), config, size, device) for depth in (shallow, deep)
    )
    further = (shape.num_hidden_layers - deep) / (deep - shallow)
    a_step = long + further * max(0.0, long - short)
    peak = None if large is None or small is None else int(large + further * (large - small))
    seconds = END_TO_END_TOKENS / size.batch_tokens * a_step
    return _row(name, label, END_TO_END_TOKENS, a_step, seconds, peak, 0)


def _row(
    name: str, label: str, tokens: int, unit: float, seconds: float, peak: int | None, states: int
) -> dict[str, Any]:
    hours, memory = PUBLISHED.get((name, label), (None, None))
    return {
        "model": name,
        "stage": label,
        "tokens": tokens,
        "s per block or step": unit,
        "hours": seconds / 3600,
        "GPU GB": None if peak is None else peak / 1e9,
        "CPU or disk GB": states / 1e9,
        "EfficientQAT hours": hours,
        "EfficientQAT GB": memory,
    }


def resized(shape: LlamaConfig, layers: int, vocabulary: int | None = None) -> LlamaConfig:
    """The shape with another number of blocks, and of words where it is given."""
    values: dict[str, Any] = shape.to_dict() | {"num_hidden_layers": layers}
    if vocabulary:
        values["vocab_size"] = vocabulary
    return LlamaConfig(**values)


def _model(shape: LlamaConfig, device: torch.device) -> Any:
    with device:
        model = LlamaForCausalLM(shape)
    place(model, device, torch.bfloat16)
    return model.eval().requires_grad_(False)


def _reconstruct(
    task: Reconstruction, count: int, rows: int, size: Size, device: torch.device
) -> tuple[float, int | None]:
    """(seconds, peak bytes on the GPU) of one block with `count` calibration batches."""
    words = task.model.config.vocab_size
    ids = [torch.randint(words, (rows, size.sequence)) for _ in range(count)]
    every = torch.ones(rows, size.sequence, dtype=torch.bool)
    batches = [Batch(tokens, every, every) for tokens in ids]
    with tempfile.TemporaryDirectory() as folder:
        context = SilentContext(Path(folder))
        started = _start(device)
        reconstruct(task, batches, context, device=device)
        return _stop(device, started)


def _distill(
    shape: LlamaConfig, config: DistillConfig, size: Size, device: torch.device
) -> tuple[float, int | None]:
    """(median seconds of a step, peak bytes on the GPU) of a shallow model."""
    teacher = _model(shape, device)
    names = [layer.name for layer in plan_layers(teacher, 64) if layer.quantize]
    student = copy_to_quantize(teacher, names)

    def make(_: str, linear: nn.Linear) -> nn.Module:
        latent = Latent(linear.weight.float(), *INT2.fit(linear.weight, 64, "absmax"))
        layer = FakeQuantLinear(latent, linear.bias, INT2)
        return layer if config.weight_lr else FixedCodesLinear(layer)

    swap_linears(student, names, make)
    sequences = config.tokens // size.sequence
    data = [
        Example(tuple(torch.randint(shape.vocab_size, (size.sequence,)).tolist()), 1)
        for _ in range(sequences)
    ]
    is_packed = config.teacher == "int4" and config.loss == "jsd"
    is_away = is_packed or config.loss == "next_token"
    teaching = _packed(teacher, names) if is_packed else teacher
    with (
        tempfile.TemporaryDirectory() as folder,
        blocks_away(teacher) if is_away else nullcontext(),
    ):
        context = _Curves(Path(folder))
        started = _start(device)
        distill(Distillation(student, teaching, data, config), context)
        _, peak = _stop(device, started)
    series = SeriesNames(Precision.INT2.key).over_steps("tokens_per_s")
    speeds = context.points[series][1:]  # the first step compiles
    return size.batch_tokens / statistics.median(speeds), peak


def _packed(model: Any, names: list[str]) -> Any:
    weights = {name: model.get_submodule(name).weight for name in names}
    packed = {
        name: INT4.pack(weight, *INT4.fit(weight, 64, "absmax")) for name, weight in weights.items()
    }
    return packed_teacher(model, packed, {})


def _start(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    return time.perf_counter()


def _stop(device: torch.device, started: float) -> tuple[float, int | None]:
    if device.type != "cuda":
        return time.perf_counter() - started, None
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated()


class _Curves(SilentContext):
    """Keeps what would be drawn."""

    def __init__(self, checkpoint_dir: Path) -> None:
        super().__init__(checkpoint_dir)
        self.points: dict[str, list[float]] = {}

    def metric(self, series: str, step: int, value: float) -> None:
        self.points.setdefault(series, []).append(value)


if __name__ == "__main__":
    main()
