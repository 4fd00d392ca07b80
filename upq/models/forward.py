"""Running parts of a causal language model: its backbone and single decoder blocks.

Found by structure, so that any Hugging Face decoder works. Attention masks are never passed: sequences are padded
on the right, and causal attention of a real token never looks at what stands to its right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from upq.models.logits import backbone
from upq.models.structure import decoder_blocks


@dataclass
class BlockCall:
    """How the model calls one decoder block, apart from the hidden states."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output hidden states, (rows, tokens, hidden)."""
        return self.hidden_of(block(hidden, *self.args, **self.kwargs))

    @staticmethod
    def hidden_of(output: Any) -> torch.Tensor:
        """The hidden states in what a block returns."""
        return output[0] if isinstance(output, tuple) else output


def last_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states that the head reads, (rows, tokens, hidden), for ids (rows, tokens)."""
    return backbone(model)(input_ids=ids, use_cache=False).last_hidden_state


@torch.no_grad()
def block_calls(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, list[BlockCall]]:
    """(hidden states that enter the first block, the call of every block) for ids (rows, tokens). Runs no block, but
    the first one on a single token, to see what blocks of this model return.
    """
    _, blocks = decoder_blocks(model)
    gives_tuples = _gives_tuples(model, blocks[0], ids[:1, :1])
    entering: list[torch.Tensor] = []
    calls: list[BlockCall] = []

    def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        entering.append(hidden)
        calls.append(
            BlockCall(args, {**kwargs, "use_cache": False} if "use_cache" in kwargs else kwargs)
        )
        return (hidden, None, None) if gives_tuples else hidden

    with replaced_forwards(blocks, [record] * len(blocks)):
        last_hidden(model, ids)
    return entering[0], calls


class _Seen(Exception):
    """Ends a forward pass as soon as it has shown what was to be seen."""


def _gives_tuples(model: Any, block: nn.Module, ids: torch.Tensor) -> bool:
    """Whether a block returns a tuple that begins with its hidden states, and not the hidden states alone."""
    found: list[Any] = []

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Seen

    handle = block.register_forward_hook(look)
    try:
        last_hidden(model, ids)
    except _Seen:
        pass
    finally:
        handle.remove()
    return bool(found) and isinstance(found[0], tuple)


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
def replaced_forwards(
    blocks: nn.ModuleList, functions: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Let each block compute what its function returns, for a while."""
    for block, function in zip(blocks, functions, strict=True):
        block.forward = function
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
