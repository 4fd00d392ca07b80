"""Engine 2: distillation QAT. A fake-quantized student learns to give the frozen FP16 teacher's distributions.

The loss is the generalized JSD of UPQ section 3.3, averaged over the tokens that count. Weights and scales are
float32, the forward and backward passes run in the model's own dtype. The teacher's hidden states are computed
once where the data is passed several times; only its head runs again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from upq.blockwise import trainable_groups
from upq.config import DistillConfig
from upq.context import RunContext
from upq.data import Batch, Example, collate, plan_batches
from upq.errors import UserError
from upq.forward import head, last_hidden
from upq.layers import fake_quant_layers
from upq.losses import head_divergence

#: Teacher hidden states are kept when they fit in this many bytes.
TEACHER_CACHE_BYTES = 2 * 2**30
#: How often the held-out KL is looked at during training.
PROBES = 5

SaveStep = Callable[[int, dict[str, torch.Tensor], dict[str, Any]], None]
LoadStep = Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]] | None]


def distill(
    student: Any,
    teacher: Any,
    examples: list[Example],
    config: DistillConfig,
    seed: int,
    context: RunContext,
    save: SaveStep,
    load: LoadStep,
    probe: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the training-form layers of `student` in place.

    save(step, tensors, state) keeps a resumable checkpoint, load() gives the newest one or None; training goes on
    behind it bit by bit. probe(step) is called a few times on the way and at the end. Raises UserError("diverged")
    at the first non-finite loss, naming the step.
    """
    plan = plan_batches(examples, config.tokens, config.batch_tokens, seed)
    steps = -(-len(plan) // config.accumulation)
    optimizer = torch.optim.AdamW(
        trainable_groups(student, config.weight_lr, config.scale_lr),
        weight_decay=config.weight_decay,
        fused=True,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = _restore(student, optimizer, load())
    targets = _Targets(teacher, examples, plan)
    logits = head(teacher)
    context.stage("int2", steps)
    saved_at = time.monotonic()
    for step in range(first, steps):
        if step % max(1, steps // PROBES) == 0:
            probe(step)
        started = time.monotonic()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, steps, config.warmup_share)
        indices = plan[step * config.accumulation : (step + 1) * config.accumulation]
        loss, tokens = _step(student, examples, indices, targets, logits, config, context)
        if not math.isfinite(loss):
            raise UserError(
                "diverged",
                f"The distillation loss became {loss} at step {step + 1}.",
                "Lower int2.distill.weight_lr and scale_lr.",
            )
        norm = _clip(student, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        context.metric("jsd", step, loss)
        context.metric("grad_norm", step, norm)
        context.metric(
            "lr", step, optimizer.param_groups[0]["lr"] / max(peaks[0], 1e-30) * config.weight_lr
        )
        speed = tokens / (time.monotonic() - started)
        context.metric("tokens_per_s", step, speed)
        context.progress(step + 1, tokens_per_s=speed, detail=f"loss {loss:.3f}")
        if time.monotonic() - saved_at >= config.checkpoint_seconds and step + 1 < steps:
            context.flush()
            save(step + 1, *_state(student, optimizer, step + 1))
            saved_at = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    probe(steps)


def _step(
    student: Any,
    examples: list[Example],
    indices: list[list[int]],
    targets: _Targets,
    logits: Callable[[torch.Tensor], torch.Tensor],
    config: DistillConfig,
    context: RunContext,
) -> tuple[float, int]:
    """Accumulate the gradients of one optimizer step: (mean loss in nats per counted token, tokens processed)."""
    batches = [collate([examples[one] for one in rows], student.device) for rows in indices]
    counted = sum(int(batch.counts.sum()) for batch in batches)
    total = 0.0
    for rows, batch in zip(indices, batches, strict=True):
        context.check()
        hidden = last_hidden(student, batch.ids)[batch.counts]
        divergence = head_divergence(
            hidden, targets.of(rows, batch), logits, config.beta, config.temperature
        )
        (divergence / counted).backward()
        total += divergence.item()
    return total / counted, sum(int(batch.real.sum()) for batch in batches)


class _Targets:
    """The teacher's hidden states at the counted positions of a batch, (counted, hidden).

    Kept states always come from the first batch of the plan that holds the sequence, because the shape of a batch
    shows in the last bits: so a resumed run sees the same targets.
    """

    def __init__(self, teacher: Any, examples: list[Example], plan: list[list[int]]) -> None:
        self.teacher, self.examples = teacher, examples
        self.home: dict[int, list[int]] = {}
        for rows in plan:
            for row in rows:
                self.home.setdefault(row, rows)
        self.kept: dict[int, torch.Tensor] = {}
        counted = sum(examples[row].counted for row in self.home)
        width = teacher.get_output_embeddings().weight.shape[1]
        repeats = sum(map(len, plan)) > len(self.home)
        self.keep = repeats and counted * width * teacher.dtype.itemsize <= TEACHER_CACHE_BYTES

    @torch.no_grad()
    def of(self, rows: list[int], batch: Batch) -> torch.Tensor:
        """Targets of the examples `rows`, which `batch` holds."""
        if not self.keep:
            return last_hidden(self.teacher, batch.ids)[batch.counts]
        for row in rows:
            if row not in self.kept:
                self._compute(self.home[row])
        return torch.cat([self.kept[row] for row in rows])

    def _compute(self, rows: list[int]) -> None:
        batch = collate([self.examples[row] for row in rows], self.teacher.device)
        hidden = last_hidden(self.teacher, batch.ids)
        for position, row in enumerate(rows):
            self.kept[row] = hidden[position][batch.counts[position]]


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then a cosine to zero, as a share of the peak."""
    warmup = int(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _clip(student: Any, clip_norm: float) -> float:
    """Clip the gradients' norm in place where clip_norm is not 0; returns the norm before."""
    parameters = [one for one in student.parameters() if one.grad is not None]
    return torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf).item()


def _state(
    student: Any, optimizer: torch.optim.Optimizer, step: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in fake_quant_layers(student):
        for kind, parameter in (("weight", layer.weight), ("log_scale", layer.log_scale)):
            tensors[f"{name}.{kind}"] = parameter
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{name}.{kind}.{moment}"] = optimizer.state[parameter][moment]
    return tensors, {"step": step}


@torch.no_grad()
def _restore(
    student: Any,
    optimizer: torch.optim.Optimizer,
    found: tuple[dict[str, torch.Tensor], dict[str, Any]] | None,
) -> int:
    """Put a checkpoint back; returns the first step still to do."""
    if found is None:
        return 0
    tensors, state = found
    for name, layer in fake_quant_layers(student):
        for kind, parameter in (("weight", layer.weight), ("log_scale", layer.log_scale)):
            parameter.copy_(tensors[f"{name}.{kind}"])
            optimizer.state[parameter] = {
                moment: tensors[f"{name}.{kind}.{moment}"].to(parameter.device)
                for moment in ("exp_avg", "exp_avg_sq", "step")
            }
    return state["step"]
