"""Running parts of a causal language model: its backbone, its head, and single decoder blocks.

Found by structure, so that any Hugging Face decoder works. Attention masks are never passed: sequences are padded
on the right, and causal attention of a real token never looks at what stands to its right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from upq.models.structure import decoder_blocks

#: Rows of hidden states that the head turns into logits at once, so that logits of a whole batch never exist.
CHUNK_ROWS = 128


@dataclass
class BlockCall:
    """How the model calls one decoder block, apart from the hidden states."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output hidden states, (rows, tokens, hidden)."""
        out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def backbone(model: Any) -> nn.Module:
    """The model without its head: maps input_ids to the last hidden states."""
    return model.get_decoder()


def last_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states that the head reads, (rows, tokens, hidden), for ids (rows, tokens)."""
    return backbone(model)(input_ids=ids, use_cache=False).last_hidden_state


def head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The map from hidden states (..., hidden) to logits (..., vocabulary), soft-capped where the model does."""
    linear = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    scale = getattr(model.config, "logits_scaling", None)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        out = linear(hidden)
        out = out / scale if scale else out
        return torch.tanh(out / cap) * cap if cap else out

    return logits


@torch.no_grad()
def block_calls(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, list[BlockCall]]:
    """(hidden states that enter the first block, the call of every block) for ids (rows, tokens); runs no block."""
    _, blocks = decoder_blocks(model)
    entering: list[torch.Tensor] = []
    calls: list[BlockCall] = []

    def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        entering.append(hidden)
        calls.append(
            BlockCall(args, {**kwargs, "use_cache": False} if "use_cache" in kwargs else kwargs)
        )
        return hidden

    with _forwards_replaced(blocks, record):
        last_hidden(model, ids)
    return entering[0], calls


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Keep only what enters each decoder block; the backward pass computes the rest again (gradient checkpointing)."""
    blocks = decoder_blocks(model)[1]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def _forwards_replaced(blocks: nn.ModuleList, function: Callable[..., Any]) -> Any:
    for block in blocks:
        block.forward = function
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
