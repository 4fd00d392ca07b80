"""Where a model lies and in which dtype it computes; parts of it may be elsewhere for a while.

`place` changes a model, `placed_copy` gives one that shares what need not change. Blocks are lent, or wait on another
device, so that a device holds only what computes.
"""

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


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; packed ones are buffers, and a block may have no other."""
    return next(tensor.device for tensor in (*module.parameters(), *module.buffers()))


def serving_device() -> torch.device:
    """Where models answer: on a GPU where torch sees one, else on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(block: nn.Module, device: torch.device) -> nn.Module:
    """The block itself where it is on the device already, else a copy there; the block stays as it is."""
    here = device_of(block)
    return block if here == _exact(device) else copy.deepcopy(block).to(device)


def _exact(device: torch.device) -> torch.device:
    """The device with its number, as tensors have it."""
    return torch.empty(0, device=device).device


def copy_to_quantize(model: Any, names: Iterable[str]) -> Any:
    """A copy of `model` whose named linears are about to be replaced. It shares their weights, the embedding and the
    head with the model, which stays as it is.
    """
    linears = [model.get_submodule(name) for name in names]
    shared = [*linears, model.get_input_embeddings(), model.get_output_embeddings()]
    return copy.deepcopy(model, {id(module.weight): module.weight for module in shared})


@contextmanager
def blocks_away(model: Any, device: torch.device | str = "cpu") -> Iterator[None]:
    """Move the decoder blocks of `model` to `device` for a while; embedding, last norm and head stay where they are."""
    blocks = decoder_blocks(model)[1]
    before = device_of(blocks)
    blocks.to(device)
    try:
        yield
    finally:
        blocks.to(before)


def is_large(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the model in `dtype` would take too much of a GPU's free memory to train blocks beside it."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return weights * dtype.itemsize > LARGEST_SHARE * free


def lend_blocks(model: Any, device: torch.device) -> None:
    """Let decoder blocks that are elsewhere compute on `device`: each of their modules has its parameters there while
    it runs, and only then. A copy of a block that is moved to the device computes as if this had not been called.
    """
    for module in decoder_blocks(model)[1].modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(partial(_lend, _exact(device)))
            module.register_forward_hook(_take_back, always_call=True)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 for a while: each of its modules has wide parameters while it runs."""
    handles = []
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(partial(_lend, torch.float32)))
            handles.append(module.register_forward_hook(_take_back, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_lent(model: Any) -> bool:
    """Whether the model computes somewhere else than where its decoder blocks are."""
    return device_of(decoder_blocks(model)[1]) != model.device


#: Attribute of a module that computes with copies: its own parameters by name.
_LENT = "lent_parameters"


def _lend(target: torch.device | torch.dtype, module: nn.Module, _: Any) -> None:
    own = dict(module.named_parameters(recurse=False))
    copies = {name: parameter.to(target) for name, parameter in own.items()}
    lent = {name: own[name] for name, copied in copies.items() if copied is not own[name]}
    vars(module)[_LENT] = lent
    for name in lent:
        setattr(module, name, nn.Parameter(copies[name], requires_grad=False))


def _take_back(module: nn.Module, *_: Any) -> None:
    for name, parameter in vars(module).pop(_LENT, {}).items():
        setattr(module, name, parameter)


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


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capability = torch.cpu.get_capabilities()
    fast = any(capability.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def place(model: Any, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Change a model in place: all of it moves to the device, and its parameters take `dtype`, buffers keep theirs.

    dtype: None stands for the device's compute dtype. What modules share stays shared.
    """
    dtype = dtype or compute_dtype(device)
    for parameter in model.parameters():
        if parameter.numel():
            parameter.data = parameter.data.to(device, dtype)
    _finish(model, device, dtype)


def placed_copy(model: Any, device: torch.device) -> Any:
    """A frozen copy of a model on the device in its compute dtype; the model itself stays as it is.

    The copy shares the weights that are there in this type already. Where the model is large for the device the copy's
    decoder blocks stay on the CPU, which lends them.
    """
    dtype, lends = compute_dtype(device), is_large(model, compute_dtype(device), device)
    staying = set(decoder_blocks(model)[1].parameters()) if lends else set()
    placed = {
        id(parameter): nn.Parameter(
            parameter.detach().to("cpu" if parameter in staying else device, dtype),
            requires_grad=False,
        )
        for parameter in model.parameters()
    }
    copied = copy.deepcopy(model, placed)
    _finish(copied, device, dtype)
    if lends:
        lend_blocks(copied, device)
    return copied


def _finish(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Let a model whose parameters are placed follow them: its buffers, and what it says of its dtype."""
    # Module.to would copy a shared buffer once for each module.
    moved = {id(buffer): buffer.to(device) for buffer in model.buffers()}
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, moved[id(buffer)])
        if isinstance(module, PackedEmbedding):
            module.settle(device, dtype)
    if hasattr(model, "config"):
        model.config.dtype = dtype
