"""The story of a run on one page: load, data, INT4, INT2, pack, measure.

Every stage reports through the context and asks it whether to stop. The numbers come from the packed artifacts
themselves, loaded as the chat loads them.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from upq import assembly, checks, data, models
from upq.artifact import Artifact
from upq.config import RunConfig
from upq.context import RunContext
from upq.conversation import chat_ids
from upq.engines import to_compute_dtype
from upq.errors import UserError
from upq.evaluate import Reference
from upq.generate import answers, end_ids
from upq.layers import memory_bytes
from upq.memory import keep_freed_memory
from upq.methods import Quantized, Work, quantize, round_to_nearest
from upq.structure import plan_embeddings, plan_layers


def run_quantization(config: RunConfig, context: RunContext) -> None:
    """Make, store and measure the INT4 and INT2 artifacts of a config.

    Raises UserError, Cancelled or Interrupted; started again with the same context it goes on where it stopped.
    """
    device = prepare(config)
    context.stage("load", 1)
    loaded = models.load(config.model.source, revision=config.model.revision)
    layers = plan(loaded.model, config, context)
    teacher = in_compute_dtype(loaded.model, device)
    context.progress(1, detail=loaded.info.name)
    dataset = data.build(config, replace(loaded, model=teacher), context)
    work = Work(config, context, loaded, teacher, dataset, layers)
    made: dict[str, Artifact] = {}

    def finished(precision: str, quantized: Quantized) -> None:
        if precision == "INT2":
            context.stage("pack", 0)
        made[precision] = _built(precision, quantized, work)
        context.save_artifact(made[precision])
        size, bits = made[precision].size_bytes, made[precision].manifest["bits_per_weight"]
        context.log(f"{precision}: {size / 1e6:.1f} MB, {bits:.2f} bits per quantized weight")

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


def in_compute_dtype(model: Any, device: torch.device) -> Any:
    """A frozen copy of a model in the device's compute dtype."""
    return to_compute_dtype(copy.deepcopy(model), device)


def plan(model: Any, config: RunConfig, context: RunContext) -> list[str]:
    """Names of the linears to quantize; the others are logged with their reason."""
    chosen: list[set[str]] = []
    for precision, group_size in (
        ("INT4", config.int4.group_size),
        ("INT2", config.int2.group_size),
    ):
        planned = plan_layers(model, group_size)
        chosen.append({one.name for one in planned if one.quantize})
        for one in planned:
            if not one.quantize:
                context.log(f"{precision} skips {one.name} {one.shape}: {one.reason}")
    for one in plan_embeddings(model) if config.embedding_bits == 8 else []:
        if not one.quantize:
            context.log(f"{one.name} {one.shape} stays in 16 bits: {one.reason}")
    both = chosen[0] & chosen[1]
    return [one.name for one in planned if one.name in both]


def _measure(work: Work, made: dict[str, Artifact]) -> None:
    config, context = work.config, work.context
    labels = [("FP16", None), *((precision, one) for precision, one in made.items())]
    if config.measure.baselines and config.method != "rtn":
        labels += [(f"RTN {name}", None) for name in made]
    context.stage("measure", len(labels))
    started = time.monotonic()
    reference = Reference(work.teacher, work.dataset.held_out, context.check)
    rows = []
    for done, (label, kept) in enumerate(labels, 1):
        context.check()
        if label == "FP16":
            rows.append(_fp16_row(work, reference, time.monotonic() - started))
            continue
        one = kept or _baseline(work, label.removeprefix("RTN "))
        model, _ = assembly.assemble(one, str(work.teacher.device), work.teacher.dtype)
        fidelity = reference.measure(model, context.check)
        bits = one.manifest["bits_per_weight"]
        extra = {
            "bits_per_weight": bits,
            "size_bytes": one.size_bytes,
            "memory_bytes": memory_bytes(model),
        }
        rows.append(fidelity.row(label, one.precision, **extra))
        context.log(
            f"{label}: KL {fidelity.kl:.3f}, top-1 {fidelity.top1:.1%}, perplexity {fidelity.ppl:.2f}"
        )
        context.progress(done, detail=label)
    context.save_measurements(rows)


def _fp16_row(work: Work, reference: Reference, seconds: float) -> dict[str, Any]:
    fidelity = replace(reference.measure(work.teacher, work.context.check), seconds=seconds)
    parameters = list(work.loaded.model.parameters())
    size = sum(one.numel() * 2 for one in parameters)
    return fidelity.row("FP16", "FP16", bits_per_weight=16.0, size_bytes=size)


def _baseline(work: Work, precision: str) -> Artifact:
    stage = work.config.int4 if precision == "INT4" else work.config.int2
    return _built(precision, round_to_nearest(work, stage), work)


def _built(precision: str, quantized: Quantized, work: Work) -> Artifact:
    return assembly.build(precision, quantized.packed, work.loaded, work.config, quantized.plain)


class CheckContext(Protocol):
    """What a check run needs beside progress and stopping."""

    def check(self) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def progress(
        self, step: int, *, tokens_per_s: float | None = None, detail: str = ""
    ) -> None: ...
    def save_check_result(self, precision: str, position: int, result: dict[str, Any]) -> None: ...
    def check_results(self) -> list[dict[str, Any]]: ...


def run_check(config: dict[str, Any], context: CheckContext, load: Callable[..., Any]) -> None:
    """Answer a suite with each precision, greedily and many side by side; each answer's verdict is stored at once.

    config: suite ("builtin" or "ifeval"), path, limit, max_tokens, precisions, seed, run_id, model.
    load(run_id, precision, source) gives the served model. Stored results are not computed again.
    """
    prompts = suite(config)
    done = {(one["precision"], one["position"]) for one in context.check_results()}
    context.stage("check", len(prompts) * len(config["precisions"]))
    context.progress(len(done))
    for precision in config["precisions"]:
        wanted = [(at, one) for at, one in enumerate(prompts) if (precision, at) not in done]
        if not wanted:
            continue
        served = load(config["run_id"], precision, config["model"])
        step = _step(context, precision, done)
        for at, answer in _check_answers(served, dict(wanted), config, step):
            text = served.tokenizer.decode(answer, skip_special_tokens=True)
            verdict = checks.judge(prompts[at], text, config["seed"])
            context.save_check_result(precision, at, verdict.to_json())
            done.add((precision, at))
    context.progress(len(done))


def _step(context: CheckContext, precision: str, done: Sized) -> Callable[[int], None]:
    """What decoding calls with the tokens written so far: reports speed and complete answers, and may stop it."""
    started = time.monotonic()

    def step(tokens: int) -> None:
        context.check()
        speed = tokens / (time.monotonic() - started) if tokens else None
        context.progress(len(done), tokens_per_s=speed, detail=precision)

    return step


def _check_answers(
    served: Any,
    prompts: dict[int, checks.CheckPrompt],
    config: dict[str, Any],
    check: Callable[[int], None],
) -> Iterator[tuple[int, list[int]]]:
    ids = {
        at: chat_ids(served.tokenizer, [{"role": "user", "content": one.prompt}])
        for at, one in prompts.items()
    }
    ends = end_ids(served.engine, served.tokenizer)
    return answers(served.engine, ids, ends, max_new_tokens=config["max_tokens"], check=check)


def suite(config: dict[str, Any]) -> list[checks.CheckPrompt]:
    """The prompts of a check run, in the suite's order."""
    prompts = (
        checks.builtin_suite()
        if config["suite"] == "builtin"
        else checks.ifeval_suite(Path(config["path"]) if config.get("path") else None)
    )
    return prompts[: config["limit"] or None]
