"""The story of a run on one page: load, data, INT4, INT2, pack, measure.

Every stage reports through the context and asks it whether to stop. The numbers come from the packed artifacts
themselves, loaded as the chat loads them.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import torch

from upq import data
from upq.artifact import Artifact, assembly
from upq.artifact.embeddings import kept_wider
from upq.config import QUANTIZED, Precision, RunConfig, derived_seed
from upq.context import RunContext
from upq.errors import UserError
from upq.models import (
    LoadedModel,
    is_lent,
    keep_freed_memory,
    loading,
    placed_copy,
    plan_layers,
)
from upq.quantize.absorb import absorbed
from upq.quantize.measure import Yardstick
from upq.quantize.mixed import with_wide_layers
from upq.quantize.stages import Quantized, Source, Work, quantize, round_to_nearest


def run_quantization(config: RunConfig, context: RunContext) -> None:
    """Make, store and measure the INT4 and INT2 artifacts of a config.

    Raises UserError, Cancelled or Interrupted; started again with the same context it goes on where it stopped.
    """
    device = prepare(config)
    context.stage("load", 1)
    loaded = loading.load(config.model.source, revision=config.model.revision)
    rewritten = _rewritten(loaded, config, device, context)
    layers = _plan(loaded, rewritten, config, context)
    given = Source(loaded, placed_copy(loaded.model, device))
    if is_lent(given.placed):
        context.log("the 16-bit model stays in CPU memory: it is large for this GPU")
    context.progress(1, detail=loaded.info.name)
    dataset = data.build(config, replace(loaded, model=given.placed), context)
    turned = Source(rewritten, placed_copy(rewritten.model, device)) if rewritten else None
    work = Work(config, context, given, turned, dataset, layers)
    made: dict[Precision, Artifact] = {}

    def finished(precision: Precision, quantized: Quantized) -> None:
        if precision is Precision.INT2:
            context.stage("pack", 0)
        made[precision] = _built(precision, quantized, work.source(precision), config)
        context.save_artifact(made[precision])
        size, bits = made[precision].size_bytes, made[precision].manifest["bits_per_weight"]
        context.log(f"{precision.name}: {size / 1e6:.1f} MB, {bits:.2f} bits per quantized weight")

    work = with_wide_layers(work)
    quantize(work, finished)
    _measure(work, made)


def prepare(config: RunConfig) -> torch.device:
    """Set threads, seeds and the allocator; returns the device. Raises UserError("no_such_device")."""
    keep_freed_memory()
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise UserError(
            "no_such_device",
            "device is cuda, but torch sees no NVIDIA GPU here.",
            "Use device=auto or cpu.",
        )
    return torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")


def load_teacher(config: RunConfig) -> tuple[LoadedModel, Any]:
    """(the exact FP16 model on the CPU, the same in compute dtype on the run's device), seeds and threads set."""
    device = prepare(config)
    loaded = loading.load(config.model.source, revision=config.model.revision)
    return loaded, placed_copy(loaded.model, device)


def _rewritten(
    loaded: LoadedModel, config: RunConfig, device: torch.device, context: RunContext
) -> LoadedModel | None:
    """The FP16 model in the basis of an absorbed rotation; None where no precision asks for one."""
    asking = [config.of(precision) for precision in QUANTIZED if config.of(precision).basis]
    if not asking:
        return None
    plan_layers(
        loaded.model, asking[0].dividing_group
    )  # no other rotation would help where this refuses
    seed = derived_seed(config.seed, "absorbed rotations")
    model = absorbed(loaded.model, asking[0], seed, device)
    context.log(f"rotations are absorbed into the weights ({asking[0].absorbed_kind})")
    return replace(loaded, model=model)


def _plan(
    loaded: LoadedModel, rewritten: LoadedModel | None, config: RunConfig, context: RunContext
) -> list[str]:
    """Names of the linears to quantize; the others are logged with their reason."""
    chosen: list[set[str]] = []
    for precision in QUANTIZED:
        settings = config.of(precision)
        source = rewritten if rewritten and settings.basis else loaded
        planned = plan_layers(source.model, settings.dividing_group, precision.bits)
        chosen.append({layer.name for layer in planned if layer.quantize})
        for layer in planned:
            if not layer.quantize:
                context.log(f"{precision.name} skips {layer.name} {layer.shape}: {layer.reason}")
    for line in kept_wider(loaded.model, config.embedding_bits):
        context.log(line)
    both = chosen[0] & chosen[1]
    return [layer.name for layer in planned if layer.name in both]


def _measure(work: Work, made: dict[Precision, Artifact]) -> None:
    config, context = work.config, work.context
    has_baselines = config.measure.baselines and config.method != "rtn"
    baselines = list(made) if has_baselines else []
    context.stage("measure", 1 + len(made) + len(baselines))
    yardstick = Yardstick(work.teacher, work.dataset.held_out, context.check)
    context.check()
    rows = [yardstick.fp16_row()]

    def measure(label: str, artifact: Artifact, *, answers: bool = False) -> None:
        row = yardstick.row(label, artifact, yardstick.assembled(artifact), answers=answers)
        rows.append(row)
        context.log(f"{label}: {_figures(row)}")
        if "served_by" in row:
            context.log(f"{label} as served by {row['served_by']}: {_figures(row, 'served_')}")
        context.progress(len(rows), detail=label)

    for precision, artifact in made.items():
        context.check()
        measure(precision.name, artifact, answers=True)
    for precision in baselines:
        context.check()
        baseline = _built(precision, round_to_nearest(work, precision), work.given, config)
        measure(f"RTN {precision.name}", baseline)
    context.save_measurements(rows)


def _figures(row: dict[str, Any], prefix: str = "") -> str:
    kl, top1, ppl = (row[prefix + name] for name in ("kl", "top1", "ppl"))
    return f"KL {kl:.3f}, top-1 {top1:.1%}, perplexity {ppl:.2f}"


def _built(
    precision: Precision, quantized: Quantized, source: Source, config: RunConfig
) -> Artifact:
    return assembly.build(precision.name, quantized.packed, source.loaded, config, quantized.plain)
