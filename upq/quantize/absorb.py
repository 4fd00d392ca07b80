"""The FP16 model written in another basis: rotations that its weights absorb, so that nothing is applied while it runs.

R turns the residual stream, and in each attention a matrix of its own turns the values of every head (R1 and R2 of
SpinQuant). The rewritten model gives the same logits; what changes is which weights there are to round.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from upq.config import PrecisionConfig, derived_seed
from upq.models import Residual, cannot_absorb, in_float32, residual_of, trial_ids
from upq.quantize.orthogonal import random_rotation

#: Logits of the two models differ by rounding up to this share of the largest.
ROUNDING = 1e-4
#: Rows of a matrix that are held in float64 at once.
ROWS = 8192


@torch.no_grad()
def absorbed(
    model: Any, config: PrecisionConfig, seed: int, device: torch.device | None = None
) -> Any:
    """`rewritten` with values of float16, in the type in which the model is stored: float32 or a 16-bit one."""
    given = rewritten(model, config, seed, device)
    stored = model.dtype if model.dtype == torch.float32 else torch.float16
    for name, value in given.named_parameters():
        value.data = value.data.half().to(stored)
        if not torch.isfinite(value).all():
            raise cannot_absorb(model, f"{name} would go beyond the range of float16")
    given.config.dtype = stored
    return given


@torch.no_grad()
def rewritten(
    model: Any, config: PrecisionConfig, seed: int, device: torch.device | None = None
) -> Any:
    """A float32 copy of `model` in the basis that the config asks for; the model itself stays as it is.

    Norms of the stream have weights of 1, a tied head is untied. device: where products are computed, in float64; None
    stands for where the model is. Raises UserError("unsupported_rotation") for a model that this would change.
    """
    residual = residual_of(model)
    memo = {id(value): _parameter(value) for value in model.parameters()}
    copied = copy.deepcopy(model, memo)
    copied.config.dtype = torch.float32
    _untie(copied)
    _rewrite(copied, residual, _Rotations(model, config, seed, device or model.device))
    difference = _difference(model, copied)
    if not difference <= ROUNDING:
        raise cannot_absorb(model, f"its logits would change by {difference:.2g} of the largest")
    return copied


def _parameter(values: torch.Tensor) -> nn.Parameter:
    """A float32 copy of a tensor."""
    return nn.Parameter(values.detach().to(torch.float32, copy=True), requires_grad=False)


def _untie(model: Any) -> None:
    """Give the head a matrix of its own: the last norm's weight becomes a part of it, and not of the embedding."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = _parameter(head.weight)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


class _Rotations:
    """The matrices of a model, float64 on a device: of the residual stream, and of the heads of an attention."""

    def __init__(
        self, model: Any, config: PrecisionConfig, seed: int, device: torch.device
    ) -> None:
        self.config, self.seed, self.device = config, seed, device
        width = model.get_input_embeddings().weight.shape[1]
        self.stream = self._made(width, "residual stream")

    def of_values(self, name: str, size: int) -> torch.Tensor:
        """The rotation (size, size) of each head's values, which the layer `name` gives."""
        return self._made(size, name)

    def _made(self, width: int, name: str) -> torch.Tensor:
        kind, block = self.config.absorbed_kind, self.config.rotation_block
        return random_rotation(kind, width, block, derived_seed(self.seed, name)).to(self.device)


def _rewrite(model: Any, residual: Residual, rotations: _Rotations) -> None:
    """Write a float32 model, whose head is not tied, in the basis of the rotations."""
    turn = rotations.stream
    _times(model.get_input_embeddings().weight, turn)
    for name, readers in residual.readers.items():
        norm = model.get_submodule(name)
        gain = getattr(norm, "weight", None)
        columns = turn if gain is None else gain.to(turn).unsqueeze(1) * turn
        for reader in readers:
            _times(model.get_submodule(reader).weight, columns)
        if gain is not None:
            gain.fill_(1)
    for name in residual.writers:
        _turn_outputs(model.get_submodule(name), turn)
    for value, output, size in residual.values:
        rotation = rotations.of_values(value, size)
        _turn_outputs(model.get_submodule(value), rotation)
        columns = model.get_submodule(output).weight.unflatten(1, (-1, size))
        columns.copy_((columns.to(rotation) @ rotation).to(columns))


def _times(weight: torch.Tensor, columns: torch.Tensor) -> None:
    """weight (rows, in) becomes weight @ columns (in, in), a few rows at a time."""
    for rows in weight.split(ROWS):
        rows.copy_((rows.to(columns) @ columns).to(rows))


def _turn_outputs(linear: nn.Linear, rotation: torch.Tensor) -> None:
    """Each span of a layer's outputs, as long as the rotation (size, size) is wide, becomes itself @ rotation."""
    size = len(rotation)
    for values in (linear.weight, linear.bias):
        if values is not None:
            spans = values.unflatten(0, (-1, size))
            spans.copy_(torch.einsum("sr...,rt->st...", spans.to(rotation), rotation).to(spans))


def _difference(model: Any, copied: Any) -> float:
    """The largest difference of two models' logits on a few tokens, as a share of the largest logit."""
    ids = trial_ids(model)
    with in_float32(model):
        wanted = model(input_ids=ids, use_cache=False).logits
    given = copied(input_ids=ids, use_cache=False).logits
    return float((given - wanted).abs().max() / wanted.abs().max())
