"""The curves of a distillation, read without making a GPU wait for its host.

On a GPU the numbers of a step are copied while it runs and looked at during the next one, so the host need not wait for
the end of a step. On a CPU they are there at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import torch

from upq.context import TOKENS, RunContext, SeriesNames
from upq.errors import UserError


@dataclass(frozen=True)
class Step:
    """What is known of a training step before its loss is.

    rate: its learning rate. tokens: how many it processed. started: the monotonic time at which it began. shown: how
    far the stage's progress bar is after it.
    """

    index: int
    rate: float
    tokens: int
    started: float
    shown: int


class _Numbers:
    """Numbers on their way from a device to the host."""

    def __init__(self, *values: torch.Tensor) -> None:
        stacked = torch.stack([value.detach().double() for value in values])
        self.copy, self.arrival = stacked.to("cpu", non_blocking=True), None
        if stacked.is_cuda:
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    @property
    def are_here(self) -> bool:
        """Whether they can be read without waiting. On a GPU the answer is no, whether they have arrived or not."""
        return self.arrival is None

    def read(self) -> list[float]:
        """The numbers. Waits until they have arrived, and not for work that the device was given later."""
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.copy.tolist()


class Curves:
    """Reports the steps of a distillation in order, and stops it at the first loss that is not finite.

    precision: "int4" or "int2". loss: the name of the loss.
    """

    def __init__(self, context: RunContext, precision: str, loss: str) -> None:
        self.context, self.precision = context, precision
        self.names = SeriesNames(precision)
        curves = (loss, "grad_norm", "lr", "tokens_per_s")
        self.series = [self.names.over_steps(curve) for curve in curves]
        self.waiting: deque[tuple[Step, _Numbers]] = deque()
        self.reported = -math.inf

    def enter(self, step: Step, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Take over a step with its loss and the norm of its gradients, both (), before weights change.

        Raises UserError("diverged") where the loss is there already and not finite.
        """
        numbers = _Numbers(loss, norm)
        self.waiting.append((step, numbers))
        if numbers.are_here:
            self._check(step, numbers.read()[0])

    def report(self) -> None:
        """Report the steps whose numbers nobody has to wait for: on a GPU all but the newest one.

        Raises UserError("diverged") at a loss that is not finite.
        """
        while len(self.waiting) > 1 or (self.waiting and self.waiting[0][1].are_here):
            self._report(*self.waiting.popleft())

    def settle(self) -> None:
        """Report every step that was entered, as before the weights are saved or measured; raises as `report` does."""
        while self.waiting:
            self.reported = -math.inf  # the step before may have been reported a moment ago
            self._report(*self.waiting.popleft())

    def _report(self, step: Step, numbers: _Numbers) -> None:
        loss, norm = numbers.read()
        self._check(step, loss)
        now = time.monotonic()
        speed = step.tokens / (now - max(step.started, self.reported))
        self.reported = now
        for name, value in zip(self.series, (loss, norm, step.rate, speed), strict=True):
            self.context.metric(name, step.index, value)
        self.context.metric(self.names.distill_stage + TOKENS, step.index, step.tokens)
        self.context.progress(step.shown, tokens_per_s=speed, detail=f"loss {loss:.3f}")

    def _check(self, step: Step, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                "diverged",
                f"The distillation loss became {loss} at step {step.index + 1}.",
                f"Lower {self.precision}.distill.weight_lr and scale_lr.",
            )
