"""Each method is a short list of stages over the two engines and the one-shot fit; all end in packed weights.

A stage's result is kept as a checkpoint, so a resumed run passes over finished stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kernels.packing import PackedWeight
from kernels.reference import dequantize
from upq import checkpoint
from upq.blockwise import BlockResult, Task, reconstruct
from upq.config import BlockwiseConfig, Int2Config, Int4Config, RunConfig
from upq.context import RunContext
from upq.data import Batch, Dataset, collate, plan_batches
from upq.distill import distill
from upq.evaluate import Reference
from upq.layers import FakeQuantLinear, fake_quant_layers, swap_linears
from upq.models import LoadedModel
from upq.quantizers import INT2, INT4, Grid
from upq.structure import decoder_blocks

#: Held-out answers that the KL curve of the distillation is drawn from; the table uses all of them.
PROBE_EXAMPLES = 8

Packed = dict[str, PackedWeight]
#: Layer name -> (weight (out, in), scale (out, groups)), float32, not yet rounded.
Latent = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Work:
    """What every stage works on. loaded: the exact FP16 model on the CPU; teacher: the same in compute dtype, on
    the run's device; layers: names of the linears to quantize.
    """

    config: RunConfig
    context: RunContext
    loaded: LoadedModel
    teacher: Any
    dataset: Dataset
    layers: list[str]

    def weight(self, name: str) -> torch.Tensor:
        """The FP16 weight (out, in) of a layer."""
        return self.loaded.model.get_parameter(f"{name}.weight").detach()


def upq(work: Work, finished: Callable[[str, Packed], None]) -> None:
    """UPQ (section 3): FP16 -> INT4 block by block -> INT2 by distillation.

    finished(precision, packed) is called as soon as a precision is ready, so INT4 chats while INT2 trains.
    """
    int4 = _int4(work)
    finished("INT4", int4)
    finished("INT2", _int2(work, int4))


def rtn(work: Work, finished: Callable[[str, Packed], None]) -> None:
    """Round to nearest, no training: the baseline."""
    for stage, label, grid, config in (
        ("int4", "INT4", INT4, work.config.int4),
        ("int2", "INT2", INT2, work.config.int2),
    ):
        work.context.stage(stage, len(work.layers))
        finished(label, round_to_nearest(work, grid, config, work.context.progress))


def round_to_nearest(
    work: Work,
    grid: Grid,
    config: Int4Config | Int2Config,
    progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Every layer rounded to its nearest levels at the config's group size and initial scales."""
    packed = {}
    for done, name in enumerate(work.layers, 1):
        work.context.check()
        weight = work.weight(name)
        packed[name] = grid.pack(weight, grid.fit(weight, config.group_size, config.scale_init))
        progress(done)
    return packed


METHODS = {"upq": upq, "rtn": rtn}


def _int4(work: Work) -> Packed:
    work.context.stage("int4", len(decoder_blocks(work.teacher)[1]))
    config = work.config.int4
    start = {name: work.weight(name) for name in work.layers}
    latent = _reconstruct(work, "int4", INT4, config, config.blockwise, start)
    return {name: INT4.pack(weight, scale) for name, (weight, scale) in latent.items()}


def _int2(work: Work, int4: Packed) -> Packed:
    blocks = len(decoder_blocks(work.teacher)[1])
    work.context.stage("warm", blocks)
    config = work.config.int2
    start = {name: dequantize(packed) for name, packed in int4.items()}
    latent = _reconstruct(work, "int2", INT2, config, config.warm_start, start)
    if config.distill.tokens:
        latent = _distilled(work, latent)
    return {name: INT2.pack(weight, scale) for name, (weight, scale) in latent.items()}


def _reconstruct(
    work: Work,
    name: str,
    grid: Grid,
    config: Int4Config | Int2Config,
    training: BlockwiseConfig,
    start: dict[str, torch.Tensor],
) -> Latent:
    folder = work.context.checkpoint_dir / name
    kept = checkpoint.load(folder / "latent")
    if kept is not None:
        work.context.log(f"{name}: block-wise result taken from the checkpoint")
        return _paired(kept[0])
    task = Task(name, grid, config.group_size, config.scale_init, training, start)

    def load(index: int) -> BlockResult | None:
        found = checkpoint.load(folder / f"block-{index:04d}")
        return found and BlockResult(_paired(found[0]), found[1]["before"], found[1]["after"])

    def save(index: int, result: BlockResult) -> None:
        errors = {"before": result.error_before, "after": result.error_after}
        checkpoint.save(folder / f"block-{index:04d}", _flat(result.layers), errors)

    latent = reconstruct(work.teacher, task, _calibration(work, training), work.context, load, save)
    work.context.flush()
    checkpoint.save(folder / "latent", _flat(latent), {})
    checkpoint.forget(folder, "block-*")
    return latent


def _calibration(work: Work, config: BlockwiseConfig) -> list[Batch]:
    """Batches of training examples with about config.tokens tokens in all."""
    plan = plan_batches(
        work.dataset.train, config.tokens, config.batch_tokens, work.config.seed + 1
    )
    return [
        collate([work.dataset.train[one] for one in rows], work.teacher.device) for rows in plan
    ]


def _distilled(work: Work, latent: Latent) -> Latent:
    student = copy.deepcopy(work.teacher)

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        weight, scale = latent[name]
        return FakeQuantLinear(weight, linear.bias, scale, INT2).to(linear.weight.device)

    swap_linears(student, list(latent), make)
    folder = work.context.checkpoint_dir / "distill"
    reference = Reference(work.teacher, work.dataset.held_out[:PROBE_EXAMPLES], work.context.check)

    def probe(step: int) -> None:
        kl = reference.measure(student, work.context.check).kl
        work.context.metric("held_out_kl_int2", step, kl)

    distill(
        student,
        work.teacher,
        work.dataset.train,
        work.config.int2.distill,
        work.config.seed + 2,
        work.context,
        save=partial(checkpoint.save_step, folder),
        load=partial(checkpoint.load_newest_step, folder),
        probe=probe,
    )
    return {
        name: (layer.weight.detach().cpu(), layer.log_scale.detach().exp().cpu())
        for name, layer in fake_quant_layers(student)
    }


def _flat(layers: Latent) -> dict[str, torch.Tensor]:
    pairs = {f"{name}:weight": weight for name, (weight, _) in layers.items()}
    return pairs | {f"{name}:scale": scale for name, (_, scale) in layers.items()}


def _paired(tensors: dict[str, torch.Tensor]) -> Latent:
    names = [key.removesuffix(":weight") for key in tensors if key.endswith(":weight")]
    return {name: (tensors[f"{name}:weight"], tensors[f"{name}:scale"]) for name in names}
