"""A step of many answers reads from its device once, for the tokens that it drew, and a graph's step not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.support.engine_cases import VOCABULARY, random_model, random_prompts
from tests.support.host_reads import Calls, Reads, ToHost
from upq.decode import TransformersEngine
from upq.decode.draw import pick_rows
from upq.decode.generate import _answers_in_step
from upq.decode.row_cache import RowCache
from upq.decode.transformers_engine import GraphSession, RowSession

ROWS, ROOM = 4, 12


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_step_of_many_answers_reads_once(temperature: float) -> None:
    prompts = random_prompts(3, 9, 5, 4, 7, 6)
    engine = TransformersEngine(random_model("llama", {}))
    session = RowSession(engine, ROWS, 64)
    queue: deque[tuple[int, Sequence[int], int]] = deque(
        (index, prompt, ROOM) for index, prompt in enumerate(prompts)
    )
    steps: list[list[str]] = []
    with Calls() as calls, Reads() as reads, torch.inference_mode():

        def check(_: int) -> None:
            steps.append([*calls.found, *reads.found])
            calls.found.clear()
            reads.found.clear()

        found = dict(_answers_in_step(engine, session, queue, set(), ROWS, temperature, 0, check))
    assert [len(found[index]) for index in range(len(prompts))] == [ROOM] * len(prompts)
    assert len(steps) > 2 * ROOM
    assert all(step == ["tolist"] for step in steps[1:]), "what stands before the first step aside"


class WithoutValues(GraphSession):
    """A GraphSession on device "meta", whose graph is played by a tensor of logits."""

    def __init__(self) -> None:
        self.engine: Any = SimpleNamespace(lock=nullcontext())
        self.length, self.lengths = 64, [3] * ROWS
        self.cache = RowCache(ROWS)
        self.cache.capacity = self.length + 1
        self.inputs = torch.zeros(2, ROWS, dtype=torch.int64, device="meta")

    def _replay(self, span: int) -> torch.Tensor:
        return torch.zeros(ROWS, VOCABULARY, device="meta")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rows", [list(range(ROWS)), [2, 0]], ids=str)
def test_no_value_leaves_the_gpu_in_a_graphs_step(rows: list[int], temperature: float) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), ToHost() as moved, Reads() as reads:
        session = WithoutValues()
        logits = session.step(rows, rows)
        points = torch.full((len(rows),), 0.5, dtype=torch.float64)
        drawn = pick_rows(logits, temperature, points)
        assert drawn.device == torch.device("meta")
        assert (moved.bytes, reads.found) == (0, [])
        assert drawn.cpu().shape == (len(rows),)
        assert moved.bytes == drawn.nbytes, "it would be seen"
    assert session.lengths == [3 + (row in rows) for row in range(ROWS)]
