"""Where the layers of a block start: rotated, scaled and rounded in one shot, from statistics of their inputs.

Layers that read the same tensor (query, key and value; gate and up) share its statistics, its rotation and, where it
is needed, its Hessian. The experts of a mixture have statistics of the tokens that are routed to them; one that saw too
few is rounded to the nearest levels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from kernels.transform import LATTICE, Transform, hadamard, hadamard_block
from upq.config import PrecisionConfig, derived_seed
from upq.errors import UserError
from upq.layers import Form, Forms, Latent
from upq.models import Expert, expert_of
from upq.training.ldlq import ldlq
from upq.training.streams import Stream

Hessian = Literal["plain", "normalized"]
#: Batches that a mean over activations is taken from where no Hessian is asked for; more would change it little.
MEASURED_BATCHES = 3
#: From fewer tokens an expert has no statistics: on layers of the bundled model LDLQ from 8 to 64 tokens gave up to
#: 10 % more error on other tokens than rounding to the nearest levels; from 512 on it gave less everywhere.
FEWEST_TOKENS = 128
#: Seed of UniSVQ's orthonormal A, which is the same everywhere, as in its code.
LATTICE_SEED = 4


@dataclass(frozen=True)
class InputStatistics:
    """What is known of a tensor X (tokens, in) that some layers read, `names` inside the block.

    power: sums of squares (in,). hessian: X^T X (in, in), of rows at length 1 where it is normalized. Both are None
    where nothing is known, and where is_scarce: an expert saw fewer than FEWEST_TOKENS of the tokens.
    """

    names: list[str]
    power: torch.Tensor | None = None
    hessian: torch.Tensor | None = None
    is_scarce: bool = False


class _Gathered:
    """Sums over all batches, by the name of the first layer that reads a tensor."""

    def __init__(self, hessian: Hessian | None) -> None:
        self.kind: Hessian | None = hessian
        self.names: dict[str, list[str]] = {}
        self.power: dict[str, Any] = {}
        self.hessian: dict[str, Any] = {}
        self.tokens: Counter[str] = Counter()

    def record(
        self, name: str, expert: Expert | None, real: torch.Tensor, seen: list[Any]
    ) -> Callable[..., None]:
        """A forward pre-hook of a layer, of an expert or not, for one pass; `seen` holds the tensors of this pass with
        their first readers.
        """

        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            is_real = real.flatten()
            if expert is not None and expert.rows is not None:
                is_real = is_real[expert.rows]
            first = next((reader for tensor, reader in seen if tensor is inputs[0]), None)
            if first is None:
                first = name
                seen.append((inputs[0], name))
                self._add(name, _of_real_tokens(inputs[0], is_real))
            readers = self.names.setdefault(first, [])
            if name not in readers:
                readers.append(name)

        return hook

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.tokens[name] += len(values)
        self.power[name] = self.power.get(name, 0) + values.square().sum(0)
        if self.kind:
            rows = F.normalize(values, dim=-1) if self.kind == "normalized" else values
            self.hessian[name] = self.hessian.get(name, 0) + rows.T @ rows


def _of_real_tokens(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The rows of values (..., in) at real tokens, float32: (real tokens, in). real: (rows of values,).

    Some families make one long row of a batch in front of a layer.
    """
    return values.reshape(-1, values.shape[-1])[real].float()


@torch.no_grad()
def input_statistics(
    block: nn.Module,
    names: Sequence[str],
    streams: Sequence[Stream],
    index: int,
    hessian: Hessian | None,
) -> list[InputStatistics]:
    """Statistics of the inputs of a block's layers over the real tokens of the streams.

    Without streams every layer stands alone and nothing is known of its inputs. hessian: the kind to sum up as well,
    over all streams; with None only the power is taken, over the first streams.
    """
    if not len(streams):
        return [InputStatistics([name]) for name in names]
    gathered = _Gathered(hessian)
    experts = {name: expert_of(block, name) for name in names}
    for number, stream in enumerate(streams):
        if number >= MEASURED_BATCHES and not hessian:
            break
        real, seen = stream.weight.squeeze(-1).bool(), []
        handles = [
            block.get_submodule(name).register_forward_pre_hook(
                gathered.record(name, experts[name], real, seen)
            )
            for name in names
        ]
        stream.calls[index].run(block, stream.inputs)
        for handle in handles:
            handle.remove()
    scarce = [
        name for name in names if experts[name] and gathered.tokens[name] < FEWEST_TOKENS
    ]  # no other layer has read what an expert's layer reads
    return [
        InputStatistics(readers, gathered.power[first], gathered.hessian.get(first))
        for first, readers in gathered.names.items()
        if first not in scarce
    ] + [InputStatistics([name], is_scarce=True) for name in scarce]


def initial_latents(
    weights: dict[str, torch.Tensor],
    statistics: list[InputStatistics],
    forms: Forms,
    config: PrecisionConfig,
    seed: int,
) -> dict[str, Latent]:
    """The latent of every layer of a block, by name, from the weight (out, in) that it starts from.

    seed: decides the signs of the rotations.
    """
    found: dict[str, Latent] = {}
    for number, inputs in enumerate(statistics):
        source = torch.Generator().manual_seed(derived_seed(seed, f"inputs {number}"))
        signs = _signs(weights[inputs.names[0]].shape[1], source)
        transforms = {
            name: _transform(weights[name], signs, config, source) for name in inputs.names
        }
        rotated = {name: transform.rotate(weights[name]) for name, transform in transforms.items()}
        if config.rounding == "ldlq":
            transform = next(iter(transforms.values()))
            latents = {}
            for form, alike in _by_form(rotated, forms).items():
                latents |= _solved(alike, inputs, transform, form, config)
        else:
            power = None if config.rotates_activations else inputs.power
            latents = {
                name: Latent(weight, *_fitted(weight, forms.of(name), config, power))
                for name, weight in rotated.items()
            }
        plain = not config.rotates_activations and config.codebook == "scalar"
        found |= {
            name: replace(latent, transform=None if plain else transforms[name])
            for name, latent in latents.items()
        }
    return found


def _by_form(weights: dict[str, torch.Tensor], forms: Forms) -> dict[Form, dict[str, torch.Tensor]]:
    """The weights of each form, by name, in their order."""
    found: dict[Form, dict[str, torch.Tensor]] = {}
    for name, weight in weights.items():
        found.setdefault(forms.of(name), {})[name] = weight
    return found


def _fitted(
    weight: torch.Tensor, form: Form, config: PrecisionConfig, power: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales, and zeros where there are any, of a weight (out, in)."""
    return form.grid.fit(weight, form.group_size, config.scale_init, power)


def _signs(count: int, source: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, (count,), generator=source).float() * 2 - 1


def _transform(
    weight: torch.Tensor, signs: torch.Tensor, config: PrecisionConfig, source: torch.Generator
) -> Transform:
    rows, columns = weight.shape
    transform = Transform()
    if config.rotates_activations:
        block = hadamard_block(columns, config.rotation_block)
        transform = replace(transform, block_in=block, scale_in=signs.to(weight.device))
    if config.rotation == "both":
        out = _signs(rows, source).to(weight.device)
        block = hadamard_block(rows, config.rotation_block)
        transform = replace(transform, block_out=block, scale_out=out)
    if config.codebook == "lattice":
        transform = replace(
            transform, affine=lattice().to(weight.device), shift=weight.new_zeros(LATTICE)
        )
    return transform


def lattice() -> torch.Tensor:
    """UniSVQ's initial A over c: a random orthonormal (4, 4); c is the scale of each group (section 3.1)."""
    source = torch.Generator().manual_seed(LATTICE_SEED)
    return torch.linalg.qr(torch.randn(LATTICE, LATTICE, generator=source, dtype=torch.float64))[
        0
    ].float()


def _solved(
    rotated: dict[str, torch.Tensor],
    inputs: InputStatistics,
    transform: Transform,
    form: Form,
    config: PrecisionConfig,
) -> dict[str, Latent]:
    """The latents of layers of one form that share their inputs, solved by LDLQ as one matrix.

    Inputs of which nothing is known are taken to have nothing in common: each weight goes to its nearest level.
    """
    weight = torch.cat(list(rotated.values()))
    if inputs.hessian is None:
        hessian = torch.eye(weight.shape[1], device=weight.device)
    else:
        hessian = _rotated_hessian(inputs.hessian, transform)
    try:
        joint = ldlq(
            weight,
            hessian,
            form.grid,
            form.group_size,
            config.scale_init,
            config.descent_passes,
            transform.affine,
        )
    except ValueError as error:
        raise UserError(
            "diverged",
            f"The inputs of {inputs.names[0]} give no usable Hessian: {error}.",
            "Use more calibration tokens, or rounding=nearest.",
        ) from error
    sizes = [len(weight) for weight in rotated.values()]
    zeros = [None] * len(sizes) if joint.zero is None else joint.zero.split(sizes)
    parts = zip(joint.weight.split(sizes), joint.scale.split(sizes), zeros, strict=True)
    return {name: Latent(*part) for name, part in zip(rotated, parts, strict=True)}


def _rotated_hessian(hessian: torch.Tensor, transform: Transform) -> torch.Tensor:
    """The Hessian of the inputs behind signs and Hadamard."""
    if transform.scale_in is None:
        return hessian
    signed = hessian * transform.scale_in * transform.scale_in.unsqueeze(1)
    return hadamard(hadamard(signed, transform.block_in).T, transform.block_in).contiguous()
