"""Decoding engines: from a loaded model to logits, one token per sequence and step."""

from __future__ import annotations

from typing import Any

import torch

from upq.decode import native
from upq.decode.engine import Engine
from upq.decode.transformers_engine import TransformersEngine
from upq.models import place


def engine_for(model: Any, device: torch.device | None = None) -> Engine:
    """The fastest engine for a model, which belongs to the engine from here on.

    device: compute there, in the dtype that is fastest there; the model is changed in place. None: as it is. On the
    CPU the Llama family is decoded in C; everything else, and everything on a GPU, by transformers.
    """
    target = device or model.device
    if target.type == "cpu" and not native.unsupported(model):
        return native.NativeEngine(model)
    if device is not None:
        place(model, device)
    return TransformersEngine(model)
