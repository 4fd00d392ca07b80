"""Engine 2: distillation QAT. A fake-quantized student learns to give the frozen FP16 teacher's distributions.

The loss is the generalized JSD of UPQ section 3.3, or the next-token loss of EfficientQAT's E2E-QP, averaged over
the tokens that count. Weights and scales are float32, the forward and backward passes run in the model's own dtype.
Several processes share the sequences of every step where `upq.training.parallel` has them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from upq.config import DistillConfig
from upq.context import RunContext, SeriesNames
from upq.data import Example, collate, plan_batches
from upq.errors import Interrupted
from upq.layers import fix_codes
from upq.models import blocks_away, head, last_hidden, recomputed
from upq.training import parallel
from upq.training.curves import Curves, Step
from upq.training.fused_norms import fused_norms
from upq.training.losses import head_cross_entropy, head_divergence
from upq.training.shared_inputs import shared_inputs
from upq.training.teacher import Targets
from upq.training.trainables import make_optimizer, restore, settle, training_state

#: How often the held-out KL is looked at during training.
PROBES = 5
#: Steps that a distillation of so many seconds is shown as, since nobody knows how many it will make.
SHOWN_STEPS = 1000
#: Environment variable: seconds since 1970 at which a distillation with a time of its own ends at the latest.
UNTIL = "UPQ_UNTIL"


@dataclass(frozen=True)
class Distillation:
    """What is distilled. Without a learning rate of the weights their codes stay what they are (EfficientQAT's E2E-QP).

    student: a copy of `teacher`, or of the same model in another basis; its training-form layers are trained in place,
    and its norms where they have a learning rate. seed: decides the order of the examples. precision: "int4" or
    "int2"; the names of INT4's series begin with it.
    """

    student: Any
    teacher: Any
    examples: list[Example]
    config: DistillConfig
    seed: int = 0
    precision: str = "int2"


class Checkpoints(Protocol):
    """Where a distillation keeps what it needs to go on bit by bit, such as upq.quantize.checkpoint.Steps."""

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], /) -> None:
        """Keep tensors and a JSON-able state, both as they are in front of step number `step`."""
        ...

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest step that was kept; None where there is none."""
        ...


class NoCheckpoints:
    """The checkpoints of a distillation that nobody resumes."""

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Keep nothing."""

    def load(self) -> None:
        """Nothing was kept."""


def distill(
    task: Distillation,
    context: RunContext,
    checkpoints: Checkpoints | None = None,
    probe: Callable[[int], None] = lambda _: None,
) -> None:
    """Train the student of a task in place, going on behind the newest checkpoint; None keeps no checkpoints.

    probe(step) is called a few times on the way and at the end. Raises UserError("diverged") at the first non-finite
    loss, naming the step; on a GPU a step later, but before anything is saved or probed.
    """
    started, checkpoints = time.monotonic(), checkpoints or NoCheckpoints()
    student, config = task.student, task.config
    plan = plan_batches(task.examples, config.tokens, config.batch_tokens, task.seed)
    steps = -(-len(plan) // config.accumulation)
    if not config.weight_lr:
        fix_codes(student)
    optimizer = make_optimizer(student, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = made = 0
    spent = 0.0
    if (found := checkpoints.load()) is not None:
        restore(student, optimizer, found[0])
        first = made = found[1]["step"]
        spent = found[1].get("seconds", 0.0)
    clock = _Clock(config, steps, spent, started)
    names = SeriesNames(task.precision)
    context.stage(names.distill_stage, SHOWN_STEPS if config.seconds else steps)
    saved_at = time.monotonic()
    curves = Curves(context, task.precision, config.loss)

    def save(step: int) -> None:
        curves.settle()
        context.flush()
        state = {"step": step, "seconds": clock.spent()}
        with clock.timing("save"):
            checkpoints.save(step, dict(training_state(student, optimizer)), state)

    def measure(step: int) -> None:
        curves.settle()
        with clock.timing("probe"):
            probe(step)

    with _passes(task, plan, context) as passes:
        for step in clock.steps_from(first):
            if parallel.is_main() and clock.is_probe_due(step):
                measure(step)
            began = time.monotonic()
            share = clock.share(step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            indices = plan[step * config.accumulation : (step + 1) * config.accumulation]
            try:
                loss, tokens = passes.run(indices)
            except Interrupted:  # nothing of this step has changed the student yet
                if parallel.is_main() and step > first:
                    save(step)
                raise
            norm = _clip(student, config.clip_norm)
            rate = share * (config.weight_lr or config.scale_lr)
            curves.enter(Step(step, rate, tokens, began, clock.shown(step)), loss, norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if parallel.size() > 1:  # every process has to stop at the same step
                curves.settle()
            else:
                curves.report()
            is_due = time.monotonic() - saved_at >= config.checkpoint_seconds
            if parallel.is_main() and is_due and step + 1 < steps and clock.has_time_to_save():
                save(step + 1)
                saved_at = time.monotonic()
            made = step + 1
        curves.settle()
    settle(student)
    if parallel.is_main():
        measure(made)


class _Clock:
    """How far a distillation has come: by its steps, or by its time where its time is limited and that is further.

    The time ends with the last probe, so training ends as much earlier as the longest one took so far. spent: seconds
    that earlier calls of a resumed run took. started: the monotonic time at which this call began.
    """

    def __init__(self, config: DistillConfig, steps: int, spent: float, started: float) -> None:
        self.steps, self.warmup_share = steps, config.warmup_share
        self.before, self.started = spent, started
        self.seconds, self.probes = config.seconds, 0
        self.longest = {"probe": 0.0, "save": 0.0}
        if self.seconds and UNTIL in os.environ:
            left = max(1.0, float(os.environ[UNTIL]) - time.time())
            self.seconds = min(self.seconds, spent + left)

    @contextmanager
    def timing(self, kind: Literal["probe", "save"]) -> Iterator[None]:
        """Learn how long a probe or a save takes."""
        started = time.monotonic()
        yield
        self.longest[kind] = max(self.longest[kind], time.monotonic() - started)

    def spent(self) -> float:
        """Seconds of training in all."""
        return self.before + time.monotonic() - self.started

    def has_time_to_save(self) -> bool:
        """Whether a save would be over before training is. One that is not would keep what is finished anyway."""
        return not self.seconds or self.spent() + self.longest["save"] < self._end()

    def _end(self) -> float:
        """Seconds after which training ends, at most half of all for the last probe."""
        return max(self.seconds / 2, self.seconds - self.longest["probe"])

    def _progress(self, step: int) -> float:
        return max(step / self.steps, self.spent() / self._end())

    def steps_from(self, first: int) -> Iterator[int]:
        """The steps from number `first` on, as long as there is time."""
        for step in range(first, self.steps):
            if self.seconds and parallel.from_main(self._progress(step) >= 1):
                return
            yield step

    def share(self, step: int) -> float:
        """The learning rates of this step, as a share of their peaks."""
        if not self.seconds:
            return _schedule(step, self.steps, self.warmup_share)
        progress = parallel.from_main(self._progress(step))
        if progress < self.warmup_share:
            return max(progress / self.warmup_share, 1 / self.steps)
        falling = (progress - self.warmup_share) / (1 - self.warmup_share)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))

    def is_probe_due(self, step: int) -> bool:
        """Whether the held-out KL is to be looked at before this step."""
        if not self.seconds:
            return step % max(1, self.steps // PROBES) == 0
        reached = int(self._progress(step) * PROBES) + 1
        is_due, self.probes = reached > self.probes, max(reached, self.probes)
        return is_due

    def shown(self, step: int) -> int:
        """What the progress bar shows after this step."""
        done = min(1.0, self._progress(step + 1)) * SHOWN_STEPS if self.seconds else step + 1
        return int(done)


@contextmanager
def _passes(task: Distillation, plan: list[list[int]], context: RunContext) -> Iterator[_Passes]:
    """Passes over the batches of the plan. While they are in use, models compute with what saves time or memory, and
    a teacher that is not needed leaves the device.
    """
    student, teacher, config = task.student, task.teacher, task.config
    with ExitStack() as stack:
        if student.device.type == "cuda":
            stack.enter_context(shared_inputs(student, teacher.dtype))
            for model in (student, teacher):
                stack.enter_context(fused_norms(model, teacher.dtype))
        targets = _targets(task, plan, context) if config.loss == "jsd" else None
        if config.loss == "next_token" or config.teacher == "cached":
            stack.enter_context(blocks_away(teacher))
        if config.checkpointing:
            stack.enter_context(recomputed(student))
        yield _Passes(task, context, targets)


def _targets(task: Distillation, plan: list[list[int]], context: RunContext) -> Targets:
    """The teacher's states for this process's part of the plan, computed at once where the config wants them cached."""
    eager = task.config.teacher == "cached"
    shares = [parallel.share(rows) for rows in plan]
    targets = Targets(task.teacher, task.examples, shares, context.checkpoint_dir, eager=eager)
    if eager:
        targets.fill(context.check)
    return targets


class _Passes:
    """Forward and backward passes over the batches of one optimizer step. targets: None for the next-token loss."""

    def __init__(self, task: Distillation, context: RunContext, targets: Targets | None) -> None:
        self.task, self.context, self.targets = task, context, targets
        self.student, self.head = task.student, head(task.student)
        self.teacher_head = head(task.teacher)

    def run(self, indices: list[list[int]]) -> tuple[torch.Tensor, int]:
        """Add up the gradients of the batches: (mean loss (), nats per counted token, tokens processed)."""
        everything = [self.task.examples[row] for rows in indices for row in rows]
        counted = sum(example.counted for example in everything)
        total = torch.zeros((), dtype=torch.float64, device=self.student.device)
        for rows in map(parallel.share, indices):
            parallel.check(self.context)
            if rows:
                loss = self._loss(rows)
                (loss / counted).backward()
                total += loss.detach()
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        if parallel.size() > 1:
            for parameter in trained:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
            parallel.add_up([total, *gradients])
        return total / counted, sum(len(example.ids) for example in everything)

    def _loss(self, rows: list[int]) -> torch.Tensor:
        """Loss summed over the counted tokens of the examples `rows`."""
        batch = collate([self.task.examples[row] for row in rows], self.student.device)
        hidden = last_hidden(self.student, batch.ids)[batch.counts]
        if self.targets is None:
            return head_cross_entropy(hidden, batch.next_ids, self.head)
        config, wanted = self.task.config, self.targets.of(rows, batch)

        def teacher_logits(part: slice) -> torch.Tensor:
            return self.teacher_head(wanted[part])

        return head_divergence(hidden, teacher_logits, self.head, config.beta, config.temperature)


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Linear warm-up, then a cosine to zero, as a share of the peak."""
    warmup = int(steps * warmup_share)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _clip(student: Any, clip_norm: float) -> torch.Tensor:
    """Clip the gradients' norm in place where clip_norm is not 0; returns the norm before, ()."""
    parameters = [parameter for parameter in student.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
