"""Parts of a model on another device for a while, so that the device holds only what computes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from upq.models.structure import decoder_blocks

#: A model whose weights take more than this share of a GPU's free memory leaves its decoder blocks on the CPU: the
#: rest is for the block that trains, its optimizer state and its batch.
LARGEST_SHARE = 0.5


def on_device(block: nn.Module, device: torch.device) -> nn.Module:
    """The block itself where it is on the device already, else a copy there, which is gone when it is dropped."""
    here = next(block.parameters()).device
    return block if here == _exact(device) else copy.deepcopy(block).to(device)


def _exact(device: torch.device) -> torch.device:
    """The device with its number, as tensors have it."""
    return torch.empty(0, device=device).device


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


def is_large(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the model in `dtype` would take too much of a GPU's free memory to train blocks beside it."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(one.numel() for one in model.parameters()) * dtype.itemsize > LARGEST_SHARE * free


def lend_blocks(model: Any, device: torch.device) -> None:
    """Let decoder blocks that are elsewhere compute on `device`: each of their modules has its parameters there while
    it runs, and only then. A copy of a block that is moved to the device computes as if this had not been called.
    """
    for module in decoder_blocks(model)[1].modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(partial(_lend, _exact(device)))
            module.register_forward_hook(_take_back, always_call=True)


def is_lent(model: Any) -> bool:
    """Whether the model computes somewhere else than where its decoder blocks are."""
    return next(decoder_blocks(model)[1].parameters()).device != model.device


def _lend(device: torch.device, module: nn.Module, _: Any) -> None:
    parameters = module.named_parameters(recurse=False)
    lent = {name: one for name, one in parameters if one.device != device}
    vars(module)["at_home"] = lent
    for name, one in lent.items():
        setattr(module, name, nn.Parameter(one.to(device), requires_grad=False))


def _take_back(module: nn.Module, *_: Any) -> None:
    for name, one in vars(module).pop("at_home", {}).items():
        setattr(module, name, one)
