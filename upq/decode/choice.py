"""Decoding engines: from a loaded model to logits, one token per sequence and step."""

from __future__ import annotations

from typing import Any

import torch

from upq.decode import native
from upq.decode.engine import Engine
from upq.decode.transformers_engine import TransformersEngine
from upq.models import place


def native_engine(model: Any, device: torch.device) -> native.NativeEngine | None:
    """The engine in C, where it is what answers with a model on a device: on the CPU for the Llama family."""
    if device.type != "cpu" or native.unsupported(model):
        return None
    return native.NativeEngine(model)


def engine_for(model: Any, device: torch.device | None = None) -> Engine:
    """The fastest engine for a model, which belongs to the engine from here on.

    device: compute there, in the dtype that is fastest there; the model is changed in place. None: as it is. Where no
    engine in C answers, transformers does.
    """
    if (engine := native_engine(model, device or model.device)) is not None:
        return engine
    if device is not None:
        place(model, device)
    return TransformersEngine(model)
