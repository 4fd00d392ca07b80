"""The teacher's hidden states of the training sequences, at the positions that count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernels.packing import PackedWeight
from upq.data import Batch, Example, collate
from upq.layers import PackedLinear, set_parameters, swap_linears
from upq.models import copy_to_quantize, last_hidden
from upq.training.streams import HiddenStates

#: States that are kept stay in memory up to this many bytes; a teacher that is at hand keeps no more than that.
MEMORY_LIMIT = 2 * 2**30


def packed_teacher(
    model: Any, packed: dict[str, PackedWeight], plain: dict[str, torch.Tensor]
) -> Any:
    """A teacher in packed form, so that it takes little memory beside the student: `model` with the named linears
    replaced by `packed` and the named norms by `plain`; embedding and head are those of `model`.
    """
    teacher = copy_to_quantize(model, packed)

    def make(name: str, linear: nn.Linear) -> nn.Module:
        return PackedLinear(packed[name], linear.bias).to(model.device)

    swap_linears(teacher, list(packed), make)
    teacher.to(model.device)
    set_parameters(teacher, plain)
    return teacher


class Targets:
    """The teacher's hidden states, (counted, hidden) per sequence, kept where they are needed more than once.

    eager: compute all at once with `fill`, so that the teacher is not needed while the student trains. Kept states
    always come from the first batch of the plan that holds the sequence, because the shape of a batch shows in the
    last bits: so a resumed run sees the same targets.
    """

    def __init__(
        self,
        teacher: Any,
        examples: list[Example],
        plan: list[list[int]],
        folder: Path,
        *,
        eager: bool = False,
    ) -> None:
        self.teacher, self.examples = teacher, examples
        self.batch_of: dict[int, list[int]] = {}
        for rows in plan:
            for row in rows:
                self.batch_of.setdefault(row, rows)
        self.index_of = {row: index for index, row in enumerate(self.batch_of)}
        self.ready: set[int] = set()
        width = teacher.get_output_embeddings().weight.shape[1]
        shapes = [(examples[row].counted, width) for row in self.batch_of]
        repeats = sum(map(len, plan)) > len(self.batch_of)
        size = sum(rows * width for rows, _ in shapes) * teacher.dtype.itemsize
        self.keeps_states = eager or (repeats and size <= MEMORY_LIMIT)
        self.states = HiddenStates(
            shapes if self.keeps_states else [], teacher.dtype, teacher.device, folder, MEMORY_LIMIT
        )

    def fill(self, check: Callable[[], None]) -> None:
        """Compute every state that is kept."""
        for row, rows in self.batch_of.items():
            if row not in self.ready:
                check()
                self._compute(rows)

    @torch.no_grad()
    def of(self, rows: list[int], batch: Batch) -> torch.Tensor:
        """Targets of the examples `rows`, which `batch` holds, (counted in the batch, hidden)."""
        if not self.keeps_states:
            return last_hidden(self.teacher, batch.ids)[batch.counts]
        for row in rows:
            if row not in self.ready:
                self._compute(self.batch_of[row])
        return torch.cat([self.states[self.index_of[row]] for row in rows])

    @torch.no_grad()
    def _compute(self, rows: list[int]) -> None:
        batch = collate([self.examples[row] for row in rows], self.teacher.device)
        hidden = last_hidden(self.teacher, batch.ids)
        for position, row in enumerate(rows):
            if self.batch_of[row] is rows:
                self.states[self.index_of[row]] = hidden[position][batch.counts[position]]
                self.ready.add(row)
