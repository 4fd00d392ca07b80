"""How many operators a step of a distillation gives a GPU to launch. Counted on the simulated one, in `make test`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kernels.transform import Transform
from tests.support.gpu_cases import IS_SIMULATED
from tests.support.simulated_gpu import gpu
from upq.config import DistillConfig
from upq.context import SilentContext
from upq.data import Example
from upq.layers import INT2, FakeQuantLinear, Form, Forms, Latent, grid_of, swap_linears
from upq.models import copy_to_quantize, place, plan_layers
from upq.training import distill, losses, teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not IS_SIMULATED, reason="operators are counted on the simulated GPU"),
]
#: A step of the bundled model's 30 blocks, with trained norms and 8192 tokens.
BLOCKS, TOKENS, WORDS = 30, 8192, 49152
#: What stands for it: the number does not depend on widths, and on tokens and words only by the parts in which the
#: head maps them, whose number is kept (`few_words_at_once`). With all 8192 tokens it is the same.
COUNTED_TOKENS, COUNTED_WORDS, SEQUENCE = 1024, 512, 64
STEPS, ROTATED = 4, 32


class Way(NamedTuple):
    """A way to train, and how many operators a step may take. A list of tensors, as clipping and the optimizer take it,
    and a launch of a Triton kernel are one each.
    """

    forms: Forms
    is_rotated: bool
    weight_unit: Literal["layer", "group"]
    budget: int
    rates: Mapping[str, Any] = MappingProxyType(
        {"weight_lr": 1e-3, "scale_lr": 1e-3, "norm_lr": 1e-3}
    )


TWO_LEVELS = Form(grid_of("q2_k", 2), 16)
#: The layers of the bundled model that a GGUF file stores as Q2_K: 256 divides their inputs.
NESTED = {f"model.layers.{block}.mlp.down_proj": TWO_LEVELS for block in range(BLOCKS)}
#: 6154, 6362, 6116 and 7364 are counted; 7500 are what a step may take at most.
WAYS = {
    "odd, rotated": Way(Forms(Form(INT2, 32)), True, "layer", 6200),
    "q2_k, rotated": Way(Forms(TWO_LEVELS), True, "layer", 6400),
    "gguf, portable": Way(Forms(Form(grid_of("signed", 2), 32), NESTED), False, "group", 6200),
    "q2_k, rotated, scales alone": Way(
        Forms(TWO_LEVELS), True, "layer", 7400, {"weight_lr": 0.0, "scale_lr": 1e-3}
    ),
}


class Parts:
    """Operators that ran inside of each part of a step, the innermost where they are nested."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open = ["everything else"]
        self.seen = gpu.operators()

    def settle(self) -> None:
        """Count what has run since the last call for the part that is open."""
        now = gpu.operators()
        self.counts[self.open[-1]] += now - self.seen
        self.seen = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a part of this name."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.settle()
            self.open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.settle()
                self.open.pop()

        return counted


@pytest.fixture
def few_words_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    share = COUNTED_TOKENS / TOKENS * COUNTED_WORDS / WORDS
    monkeypatch.setattr(losses, "GPU_LOGITS", int(losses.GPU_LOGITS * share))


def pair(way: Way) -> tuple[Any, Any]:
    """A teacher of the bundled model's depth, and a student of it."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=COUNTED_WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(shape)
    place(model, torch.device("cuda"), torch.bfloat16)
    model.eval().requires_grad_(False)
    names = [
        layer.name for layer in plan_layers(model, way.forms.usual.group_size) if layer.quantize
    ]
    student = copy_to_quantize(model, names)

    def make(name: str, linear: nn.Linear) -> FakeQuantLinear:
        weight, form = linear.weight.float(), way.forms.of(name)
        signs = torch.ones(weight.shape[1], device="cuda")
        transform = Transform(ROTATED, scale_in=signs) if way.is_rotated else None
        latent = Latent(weight, *form.grid.fit(weight, form.group_size, "absmax"), transform)
        return FakeQuantLinear(latent, linear.bias, form.grid)

    swap_linears(student, names, make)
    return model, student


@pytest.mark.usefixtures("few_words_at_once")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_step_of_the_bundled_models_distillation_keeps_to_its_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    model, student = pair(way)
    parts, steps = Parts(), []
    for module, name, part in (
        (distill, "last_hidden", "student forward"),
        (distill, "head_divergence", "student forward"),
        (teacher, "last_hidden", "teacher"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimizer"),
    ):
        monkeypatch.setattr(module, name, parts.around(part, getattr(module, name)))
    clip = parts.around("clipping", distill._clip)

    def clip_and_look(*args: Any) -> torch.Tensor:
        parts.settle()
        steps.append(parts.counts.copy())
        return clip(*args)

    monkeypatch.setattr(distill, "_clip", clip_and_look)
    ids = torch.randint(COUNTED_WORDS, (STEPS * COUNTED_TOKENS // SEQUENCE, SEQUENCE))
    examples = [Example(tuple(row), 1) for row in ids.tolist()]
    config = DistillConfig(
        tokens=STEPS * COUNTED_TOKENS,
        batch_tokens=COUNTED_TOKENS,
        checkpoint_seconds=86_400.0,
        weight_unit=way.weight_unit,
        **way.rates,
    )
    task = distill.Distillation(student, model, examples, config)
    distill.distill(task, SilentContext(tmp_path))
    assert len(steps) == STEPS
    step = steps[-1] - steps[-2]
    assert set(step) >= {"student forward", "teacher", "backward", "optimizer", "clipping"}
    assert step.total() <= way.budget, f"{step.total()} operators: {dict(step)}"
