"""Activations that several layers read are transformed once: queries, keys and values, or gate and up.

For GPUs, where every operation is a launch. The gradients of the layers are added up before the backward pass of the
transform and not behind it, which rounds differently, so a CPU goes on as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from kernels.transform import Transform
from upq.layers import FakeQuantLinear, fake_quant_layers


class SharedInputs:
    """The transformed activations that `readers` layers with one fixed transform read.

    They are kept until the last layer has asked for them, or until a layer asks for those of other activations. The
    transform's signs are cast to dtype once.
    """

    def __init__(self, transform: Transform, readers: int, dtype: torch.dtype) -> None:
        signs = None if transform.scale_in is None else transform.scale_in.detach().to(dtype)
        self.transform, self.readers = replace(transform, scale_in=signs), readers
        self._forget()

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What Transform.inputs gives for inputs (..., in)."""
        is_graded = torch.is_grad_enabled()
        if self.kept is None or self.source is not inputs or self.is_graded != is_graded:
            self.source, self.is_graded, self.left = inputs, is_graded, self.readers
            self.kept = self.transform.inputs(inputs)
        found = self.kept
        self.left -= 1
        if not self.left:
            self._forget()
        return found

    def _forget(self) -> None:
        self.source: torch.Tensor | None = None
        self.kept: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.is_graded, self.left = False, 0


@contextmanager
def shared_inputs(student: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the training-form layers below student share what they make of their inputs, which have this dtype."""
    groups = _alike(student)
    for layers in groups:
        transform = layers[0].transform
        assert transform is not None
        shared = SharedInputs(transform, len(layers), dtype)
        for layer in layers:
            layer.shared = shared
    try:
        yield
    finally:
        for layers in groups:
            for layer in layers:
                layer.shared = None


def _alike(student: nn.Module) -> list[list[FakeQuantLinear]]:
    """Layers side by side in one module whose inputs go through the same transform, which nobody trains."""
    groups: list[tuple[str, list[FakeQuantLinear]]] = []
    for name, layer in fake_quant_layers(student):
        parent = name.rpartition(".")[0]
        transform = layer.transform
        if transform is None or any(part.requires_grad for part in transform.tensors.values()):
            continue
        for other, layers in groups:
            shared = layers[0].transform
            if other == parent and shared is not None and transform.same_inputs(shared):
                layers.append(layer)
                break
        else:
            groups.append((parent, [layer]))
    return [layers for _, layers in groups]
