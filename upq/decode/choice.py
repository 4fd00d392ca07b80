"""Decoding engines: from a loaded model to logits, one token per sequence and step."""

from __future__ import annotations

from typing import Any

import torch

from upq.decode import native
from upq.decode.engine import Engine, Session
from upq.decode.transformers_engine import TransformersEngine
from upq.layers.linear import place

__all__ = [
    "Engine",
    "Session",
    "TransformersEngine",
    "compute_dtype",
    "engine_for",
    "to_compute_dtype",
]


def engine_for(model: Any, device: torch.device | None = None) -> Engine:
    """The fastest engine for a model, which belongs to the engine from here on.

    device: compute there, in the dtype that is fastest there; the model is changed in place. None: as it is. On the
    CPU the Llama family is decoded in C; everything else, and everything on a GPU, by transformers.
    """
    target = device or model.device
    if target.type == "cpu" and not native.unsupported(model):
        return native.NativeEngine(model)
    return TransformersEngine(model if device is None else to_compute_dtype(model, device))


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
