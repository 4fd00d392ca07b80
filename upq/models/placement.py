"""Parts of a model on another device for a while, so that the device holds only what computes."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from upq.layers import PackedEmbedding
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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


_KEEP_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of up to a gigabyte; returns whether this system could be told."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEEP_BYTES) and mallopt(_TRIM_THRESHOLD, _KEEP_BYTES))


def place(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model in place, its parameters to `dtype` as well. What modules share stays shared."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device, dtype)
    place_buffers(model, device)
    for module in model.modules():
        if isinstance(module, PackedEmbedding):
            module.dtype = dtype


def place_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers of a model in place. Module.to would copy a shared one once for each module."""
    moved = {id(buffer): buffer.to(device) for buffer in model.buffers()}
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, moved[id(buffer)])


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capability = torch.cpu.get_capabilities()
    fast = any(capability.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def to_compute_dtype(model: Any, device: torch.device) -> Any:
    """The same model with its parameters in the device's compute dtype; computed buffers keep theirs."""
    place(model, device, compute_dtype(device))
    model.config.dtype = compute_dtype(device)
    return model.eval()


def in_compute_dtype(model: Any, device: torch.device) -> Any:
    """A frozen model of the same values in the device's compute dtype; weights that are so already are shared.

    The decoder blocks of a model that is large for the device stay on the CPU, which lends them (upq.models.placement).
    """
    dtype = compute_dtype(device)
    stays = is_large(model, dtype, device)
    staying = set(decoder_blocks(model)[1].parameters()) if stays else set()
    moved = {
        id(one): nn.Parameter(
            one.detach().to("cpu" if one in staying else device, dtype), requires_grad=False
        )
        for one in model.parameters()
    }
    copied = copy.deepcopy(model, moved)
    place_buffers(copied, device)
    if stays:
        lend_blocks(copied, device)
    copied.config.dtype = dtype
    return copied.eval()
