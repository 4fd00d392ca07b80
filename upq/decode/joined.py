"""Layers that read the same activations, for a decoding step on a GPU: one product where their weights are of one kind,
and activations that the kernel before it has transformed already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kernels.gpu.hadamard import InputTransform, input_transform
from kernels.gpu.operators import TritonWeight, join
from kernels.reference import TransformedWeight
from kernels.transform import Transform
from upq.decode.served_linear import ServedLinear


class Joined:
    """The products of layers side by side with their common activations (rows, in).

    transform: what a caller does to the activations first; None where the layers do it themselves, or nothing is to be
    done. Joining makes the layers' weights ranges of one larger weight; the layers go on as before.
    """

    def __init__(
        self, layers: Sequence[nn.Module], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.transform = _common_transform(layers, dtype, device)
        self.products = [_Product(layer, self.transform is not None) for layer in layers]
        weights = [product.matrix for product in self.products]
        self.whole = None
        if len(weights) > 1 and all(isinstance(weight, TritonWeight) for weight in weights):
            self.whole = join(weights)
            self.sizes = [weight.out_features for weight in weights]

    def __call__(self, values: torch.Tensor) -> list[torch.Tensor]:
        """values: (rows, in) -> the outputs (rows, out) of each layer, whose rows are contiguous."""
        if self.whole is None:
            outputs = [product.matrix(values) for product in self.products]
        else:
            outputs = self.whole(values).split(self.sizes, dim=1)
        return [
            product.finished(output) for product, output in zip(self.products, outputs, strict=True)
        ]


class _Product:
    """One layer, cut into the matrix that multiplies and what follows it."""

    def __init__(self, layer: Any, is_transformed: bool) -> None:
        self.matrix: Any = layer
        self.outputs: Transform | None = None
        self.bias: torch.Tensor | None = None
        if not isinstance(layer, ServedLinear):
            return
        prepared: Any = layer.prepared
        self.matrix, self.bias = prepared, layer.bias
        if is_transformed:
            self.matrix, self.outputs = prepared.matrix, prepared.transform

    def finished(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.outputs is not None:
            outputs = self.outputs.outputs(outputs, None)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)


def _common_transform(
    layers: Sequence[Any], dtype: torch.dtype, device: torch.device
) -> InputTransform | None:
    """What happens to the inputs of all layers, where it is the same and a kernel can do it."""
    if not all(
        isinstance(layer, ServedLinear) and isinstance(layer.prepared, TransformedWeight)
        for layer in layers
    ):
        return None
    transforms = [layer.prepared.transform for layer in layers]
    if not all(transform.same_inputs(transforms[0]) for transform in transforms[1:]):
        return None
    return input_transform(transforms[0], dtype, device)
