"""Engine 2: distillation QAT. A fake-quantized student learns to give the frozen FP16 teacher's distributions.

The loss is the generalized JSD of UPQ section 3.3, or the next-token loss of EfficientQAT's E2E-QP, averaged over
the tokens that count. Weights and scales are float32, the forward and backward passes run in the model's own dtype.
Several processes share the sequences of every step where `upq.training.parallel` has them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from upq.config import DistillConfig
from upq.context import RunContext
from upq.data import Example, collate, plan_batches
from upq.errors import UserError
from upq.layers import fix_codes, release_codes
from upq.models import blocks_away, head, last_hidden, recomputed
from upq.training import parallel
from upq.training.losses import head_cross_entropy, head_divergence
from upq.training.teacher import Targets
from upq.training.trainables import make_optimizer, restore, settle_norms, training_state

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
    precision: str = "int2",
) -> None:
    """Train the training-form layers of `student`, and its norms where they have a learning rate, in place. Without a
    learning rate of the weights their codes stay what they are (EfficientQAT's E2E-QP).

    student: a copy of a model with the same embedding and head as `teacher`. save(step, tensors, state) keeps a
    resumable checkpoint, load() gives the newest one or None; training goes on behind it bit by bit. probe(step) is
    called a few times on the way and at the end. Raises UserError("diverged") at the first non-finite loss, naming
    the step. precision: "int4" or "int2"; the series of INT4 carry its name.
    """
    series = "" if precision == "int2" else f"{precision}_"
    plan = plan_batches(examples, config.tokens, config.batch_tokens, seed)
    steps = -(-len(plan) // config.accumulation)
    if not config.weight_lr:
        fix_codes(student)
    optimizer = make_optimizer(student, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if (found := load()) is not None:
        restore(student, optimizer, found[0])
        first = found[1]["step"]
    context.stage(f"{precision}_distill", steps)
    saved_at = time.monotonic()
    with ExitStack() as stack:
        pass_over = _Pass(student, teacher, examples, plan, config, context, stack)
        for step in range(first, steps):
            if parallel.is_main() and step % max(1, steps // PROBES) == 0:
                probe(step)
            started = time.monotonic()
            share = _schedule(step, steps, config.warmup_share)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            indices = plan[step * config.accumulation : (step + 1) * config.accumulation]
            loss, tokens = pass_over.run(indices)
            if not math.isfinite(loss):
                raise UserError(
                    "diverged",
                    f"The distillation loss became {loss} at step {step + 1}.",
                    f"Lower {precision}.distill.weight_lr and scale_lr.",
                )
            norm = _clip(student, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            context.metric(f"{series}{config.loss}", step, loss)
            context.metric(f"{series}grad_norm", step, norm)
            context.metric(f"{series}lr", step, share * (config.weight_lr or config.scale_lr))
            speed = tokens / (time.monotonic() - started)
            context.metric(f"{series}tokens_per_s", step, speed)
            context.metric(f"{precision}_distill_tokens", step, tokens)
            context.progress(step + 1, tokens_per_s=speed, detail=f"loss {loss:.3f}")
            is_due = time.monotonic() - saved_at >= config.checkpoint_seconds
            if parallel.is_main() and is_due and step + 1 < steps:
                context.flush()
                tensors = dict(training_state(student, optimizer))
                save(step + 1, tensors, {"step": step + 1})
                saved_at = time.monotonic()
    settle_norms(student)
    release_codes(student)
    if parallel.is_main():
        probe(steps)


class _Pass:
    """Forward and backward passes over the batches of one optimizer step, and what they need for the whole run."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        examples: list[Example],
        plan: list[list[int]],
        config: DistillConfig,
        context: RunContext,
        stack: ExitStack,
    ) -> None:
        self.student, self.examples = student, examples
        self.config, self.context = config, context
        self.head = head(student)
        self.targets = None
        if config.loss == "jsd":
            eager = config.teacher == "cached"
            shares = [parallel.share(rows) for rows in plan]
            self.targets = Targets(teacher, examples, shares, context.checkpoint_dir, eager=eager)
            if eager:
                self.targets.fill(context.check)
        if config.loss == "next_token" or config.teacher == "cached":
            stack.enter_context(blocks_away(teacher))
        if config.checkpointing:
            stack.enter_context(recomputed(student))

    def run(self, indices: list[list[int]]) -> tuple[float, int]:
        """Add up the gradients of the batches: (mean loss in nats per counted token, tokens processed)."""
        everything = [self.examples[one] for rows in indices for one in rows]
        counted = sum(one.counted for one in everything)
        total = torch.zeros((), dtype=torch.float64, device=self.student.device)
        for rows in map(parallel.share, indices):
            parallel.check(self.context)
            if rows:
                loss = self._loss(rows)
                (loss / counted).backward()
                total += loss.item()
        trained = [one for one in self.student.parameters() if one.requires_grad]
        if parallel.size() > 1:
            for one in trained:
                if one.grad is None:
                    one.grad = torch.zeros_like(one, dtype=one.grad_dtype)
            parallel.add_up([total, *(one.grad for one in trained if one.grad is not None)])
        return total.item() / counted, sum(len(one.ids) for one in everything)

    def _loss(self, rows: list[int]) -> torch.Tensor:
        """Loss summed over the counted tokens of the examples `rows`."""
        batch = collate([self.examples[one] for one in rows], self.student.device)
        hidden = last_hidden(self.student, batch.ids)[batch.counts]
        if self.targets is None:
            return head_cross_entropy(hidden, batch.next_ids, self.head)
        config, wanted = self.config, self.targets.of(rows, batch)
        return head_divergence(hidden, wanted, self.head, config.beta, config.temperature)


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
