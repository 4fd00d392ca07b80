"""Parts of a model on another device for a while, so that the device holds only what computes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from upq.structure import decoder_blocks


def on_device(block: nn.Module, device: torch.device) -> nn.Module:
    """The block itself where it is on the device already, else a copy there, which is gone when it is dropped."""
    here = next(block.parameters()).device
    if here == torch.empty(0, device=device).device:
        return block
    return copy.deepcopy(block).to(device)


def twin(model: Any, replaced: Iterable[str]) -> Any:
    """A copy of `model` that shares its embedding, its head and the weights of the linears `replaced`: what nobody
    changes, and what is about to be replaced.
    """
    linears = [model.get_submodule(name) for name in replaced]
    shared = [*linears, model.get_input_embeddings(), model.get_output_embeddings()]
    return copy.deepcopy(model, {id(one.weight): one.weight for one in shared})


@contextmanager
def blocks_away(model: Any, device: torch.device | str = "cpu") -> Iterator[None]:
    """The decoder blocks of `model` wait on `device`; embedding, last norm and head stay where they are."""
    blocks = decoder_blocks(model)[1]
    home = next(blocks.parameters()).device
    blocks.to(device)
    try:
        yield
    finally:
        blocks.to(home)
