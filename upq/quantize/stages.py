"""How a run gets from FP16 to packed weights: for each precision block by block, then, where asked for, end to end.

A method is a choice of settings (upq.config.presets), so there is one story for all of them. A stage's result is kept
as a checkpoint, so a resumed run passes over finished stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels.packing import PackedWeight
from upq.config import (
    BlockwiseConfig,
    DistillConfig,
    Precision,
    RunConfig,
    derived_seed,
)
from upq.context import TOKENS, RunContext, SeriesNames
from upq.data import Batch, Dataset, collate, plan_batches
from upq.errors import UserError
from upq.evaluation import Reference
from upq.layers import (
    FakeQuantLinear,
    FixedCodesLinear,
    Forms,
    Latent,
    fake_quant_layers,
    set_parameters,
    swap_linears,
)
from upq.models import LoadedModel, blocks_away, copy_to_quantize, decoder_blocks
from upq.quantize import checkpoint
from upq.quantize.forms import forms_of
from upq.training import (
    BlockResult,
    Reconstruction,
    Start,
    norm_weights,
    packed_teacher,
    parallel,
    reconstruct,
)
from upq.training.distill import Distillation, distill

#: Held-out answers that the KL curve of a training is drawn from; the table uses all of them.
PROBE_EXAMPLES = 8
#: Before the name of a norm's weight in a checkpoint.
PLAIN = "plain:"


@dataclass(frozen=True)
class Quantized:
    """One precision of a model: packed linears, and the norms' weights where they were trained, by full name."""

    packed: dict[str, PackedWeight]
    plain: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """An FP16 model. loaded: the exact one on the CPU. placed: the same in compute dtype on the run's device."""

    loaded: LoadedModel
    placed: Any

    def weight(self, name: str) -> torch.Tensor:
        """The weight (out, in) of a layer, in the type that the model is stored in."""
        return self.loaded.model.get_parameter(f"{name}.weight").detach()


@dataclass(frozen=True)
class Work:
    """What every stage works on.

    given: the FP16 model, which teaches and is measured against. absorbed: the same function in the basis that an
    absorbed rotation asks for, where one does. layers: the names of the linears to quantize. wide: those of them that
    INT2 keeps in INT4's form.
    """

    config: RunConfig
    context: RunContext
    given: Source
    absorbed: Source | None
    dataset: Dataset
    layers: list[str]
    wide: frozenset[str] = frozenset()

    @property
    def teacher(self) -> Any:
        """The FP16 model in compute dtype on the run's device."""
        return self.given.placed

    def source(self, precision: Precision) -> Source:
        """The FP16 model whose weights a precision is made of."""
        if self.absorbed is None or self.config.of(precision).basis is None:
            return self.given
        return self.absorbed

    def forms(self, precision: Precision) -> Forms:
        """How the layers of a precision are stored."""
        widths = {name: self.given.weight(name).shape[1] for name in self.layers}
        return forms_of(self.config, precision, widths, self.wide)


def quantize(work: Work, finished: Callable[[Precision, Quantized], None]) -> None:
    """Make INT4, then INT2, which starts from INT4 or from FP16.

    finished(precision, quantized) is called as soon as a precision is ready, so INT4 chats while INT2 trains.
    """
    int4 = _made(work, Precision.INT4, _fp16(work, Precision.INT4), {})
    finished(Precision.INT4, int4)
    start: Mapping[str, Start] = _fp16(work, Precision.INT2)
    norms: dict[str, torch.Tensor] = {}
    if work.config.int2.start == "int4":
        start, norms = int4.packed, int4.plain
    finished(Precision.INT2, _made(work, Precision.INT2, start, norms, int4))


def _fp16(work: Work, precision: Precision) -> Mapping[str, Start]:
    return {name: work.source(precision).weight(name) for name in work.layers}


def round_to_nearest(work: Work, precision: Precision) -> Quantized:
    """The baseline: every layer rounded to its nearest levels, on the config's grid, at its group size."""
    forms, packed = work.forms(precision), {}
    for name in work.layers:
        work.context.check()
        form, weight = forms.of(name), work.given.weight(name).to(work.teacher.device).float()
        packed[name] = form.grid.pack(weight, *form.grid.fit(weight, form.group_size)).to("cpu")
    return Quantized(packed, {})


def _made(
    work: Work,
    precision: Precision,
    start: Mapping[str, Start],
    norms: dict[str, torch.Tensor],
    int4: Quantized | None = None,
) -> Quantized:
    """Make one precision from the weights and norms that it starts from. int4: the INT4 model, which may teach INT2."""
    config = work.config.of(precision)
    forms = work.forms(precision)
    work.context.stage(precision.key, len(decoder_blocks(work.teacher)[1]))
    seed = derived_seed(work.config.seed, "rotations")
    model = work.source(precision).placed
    task = Reconstruction(model, precision.key, forms, config, start, seed, norms)
    result = _reconstructed(work, task)
    if config.distill.tokens:
        result = _distilled(work, precision, forms, result, int4)
    device = work.teacher.device
    packed = {
        layer: latent.to(device).pack(forms.of(layer).grid).to("cpu")
        for layer, latent in result.layers.items()
    }
    return Quantized(packed, result.plain)


class _Blocks:
    """The checkpoints of a stage's blocks in one folder; those that are there at the beginning are read once."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        found = {index: self._read(index) for index in range(count)}
        self.finished = {index: result for index, result in found.items() if result is not None}
        self.are_complete = len(self.finished) == count

    def load(self, index: int) -> BlockResult | None:
        """The result of a block, or None."""
        return self.finished.get(index) or self._read(index)

    def save(self, index: int, result: BlockResult) -> None:
        """Commit the result of a block."""
        errors = {"before": result.error_before, "after": result.error_after}
        checkpoint.save(self._place(index), _flat(result), errors)

    def _read(self, index: int) -> BlockResult | None:
        found = checkpoint.load(self._place(index))
        if found is None:
            return None
        before, after = found[1]["before"], found[1]["after"]
        return replace(_unflattened(found[0]), error_before=before, error_after=after)

    def _place(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}"


def _reconstructed(work: Work, task: Reconstruction) -> BlockResult:
    count = len(decoder_blocks(task.model)[1])
    blocks, batches = _Blocks(work.context.checkpoint_dir / task.name, count), []
    if blocks.are_complete:
        work.context.log(f"{task.name}: block-wise result taken from the checkpoint")
    else:
        batches = _calibration(work, task.config.blockwise)
        tokens = sum(int(batch.real.sum()) for batch in batches)
        passes = max(1, task.config.blockwise.epochs)
        work.context.metric(task.name + TOKENS, 0, tokens * passes)
    result = reconstruct(task, batches, work.context, blocks)
    work.context.flush()
    return result


def _calibration(work: Work, config: BlockwiseConfig) -> list[Batch]:
    """Batches of training examples with about config.tokens tokens in all."""
    seed = derived_seed(work.config.seed, "calibration")
    plan = plan_batches(work.dataset.train, config.tokens, config.batch_tokens, seed)
    return [
        collate([work.dataset.train[row] for row in rows], work.teacher.device) for rows in plan
    ]


def _distilled(
    work: Work,
    precision: Precision,
    forms: Forms,
    start: BlockResult,
    int4: Quantized | None,
) -> BlockResult:
    config = work.config.of(precision).distill
    folder = work.context.checkpoint_dir / f"{precision.key}-distill"
    if (kept := checkpoint.load(folder / "done")) is not None:
        return _unflattened(kept[0])
    reference = Reference(work.teacher, work.dataset.held_out[:PROBE_EXAMPLES], work.context.check)
    with _teacher(work, precision, config, int4) as teacher:
        result = _trained(work, precision, forms, start, teacher, reference)
    checkpoint.save(folder / "done", _flat(result), {})
    checkpoint.Steps(folder).forget()
    return result


def _trained(
    work: Work,
    precision: Precision,
    forms: Forms,
    start: BlockResult,
    teacher: Any,
    reference: Reference,
) -> BlockResult:
    """Train a student that begins at `start`; what it takes on the device is free again afterwards."""
    config = work.config.of(precision).distill
    folder = work.context.checkpoint_dir / f"{precision.key}-distill"
    student = _student(work.source(precision).placed, forms, start, config)

    def probe(step: int) -> None:
        kl = reference.measure(student, work.context.check).kl
        work.context.metric(SeriesNames(precision.key).held_out_kl, step, kl)

    with parallel.joint_work(work.config.to_json(), work.context.checkpoint_dir):
        seed = derived_seed(work.config.seed, "distillation")
        task = Distillation(student, teacher, work.dataset.train, config, seed, precision.key)
        distill(task, work.context, checkpoint.Steps(folder), probe)
    layers = {layer: module.latent() for layer, module in fake_quant_layers(student)}
    return BlockResult(layers, norm_weights(student) if config.norm_lr else start.plain)


def _student(model: Any, forms: Forms, start: BlockResult, config: DistillConfig) -> Any:
    """A copy of the model in training form; without a learning rate of the weights it holds codes only."""
    student, device = copy_to_quantize(model, start.layers), model.device

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        layer = FakeQuantLinear(start.layers[name], linear.bias, forms.of(name).grid).to(device)
        return layer if config.weight_lr else FixedCodesLinear(layer)

    swap_linears(student, list(start.layers), make)
    student.to(device)
    set_parameters(student, start.plain)
    return student


@contextmanager
def _teacher(
    work: Work, precision: Precision, config: DistillConfig, int4: Quantized | None
) -> Iterator[Any]:
    """The model that the student learns from. FP16's blocks leave the device, before the student comes there, where
    INT4 takes their place or the text itself is what is learned.
    """
    if config.loss == "next_token":
        with blocks_away(work.teacher):
            yield work.teacher
        return
    if config.teacher != "int4":
        yield work.teacher
        return
    if int4 is None:
        raise UserError(
            "bad_config",
            f"{precision.key}.distill.teacher is int4, but there is no INT4 model yet.",
            "Use live or cached.",
        )
    teacher = packed_teacher(work.source(Precision.INT4).placed, int4.packed, int4.plain)
    with blocks_away(work.teacher):
        yield teacher


def _flat(result: BlockResult) -> dict[str, torch.Tensor]:
    tensors = {f"{PLAIN}{name}": weight for name, weight in result.plain.items()}
    for name, latent in result.layers.items():
        tensors |= {f"{name}:{part}": tensor for part, tensor in latent.tensors().items()}
    return tensors


def _unflattened(tensors: dict[str, torch.Tensor]) -> BlockResult:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PLAIN):
            name, _, part = key.rpartition(":")
            parts.setdefault(name, {})[part] = tensor
    plain = {
        key.removeprefix(PLAIN): tensor for key, tensor in tensors.items() if key.startswith(PLAIN)
    }
    latents = {name: Latent.of_tensors(own) for name, own in parts.items()}
    return BlockResult(latents, plain)
