"""Packed weights and inputs on which a kernel must agree with the definition, on any device."""

from dataclasses import replace

import torch

from kernels import Prepared, reference
from kernels.packing import NESTED_GROUP, PackedWeight, nested_block, pack, unpack

#: (outputs, inputs, groups): ones, primes, numbers that no tile divides, and each usual group size.
SHAPES = [
    (1, 16, 1),
    (3, 32, 1),
    (1, 64, 2),
    (13, 52, 1),
    (31, 96, 3),
    (70, 192, 3),
    (65, 256, 2),
    (130, 160, 1),
    (64, 384, 4),
]
#: Groups that are no multiple of 16 inputs.
NARROW = [(3, 40, 5), (17, 48, 2)]
#: (outputs, inputs) of weights with two levels of scales: blocks of 16, 48, 64, 112, 192, 240 and 256 inputs.
NESTED = [(1, 16), (3, 37 * 16), (17, 48), (7, 64), (20, 112), (65, 576), (33, 960), (40, 1536)]


def random_packed(
    bits: int, rows: int, columns: int, groups: int, device: str = "cpu", seed: int = 0
) -> PackedWeight:
    """A packed weight with every code and scales between 0.01 and 1.01."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, groups, generator=generator).add(0.01).half()
    return PackedWeight(pack(codes, bits).to(device), scale.to(device), bits, (2**bits - 1) / 2)


def random_signed(bits: int, rows: int, columns: int, groups: int, seed: int = 0) -> PackedWeight:
    """A packed weight whose zero is a code, as GGUF's Q4_0 and the like, with scales of both signs."""
    packed = random_packed(bits, rows, columns, groups, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    negative = torch.rand(rows, groups, generator=generator) < 0.5
    scale = torch.where(negative, -packed.scale, packed.scale)
    return replace(packed, scale=scale, zero=2.0 ** (bits - 1))


def random_nested(rows: int, columns: int, seed: int = 0) -> PackedWeight:
    """A packed weight with scales of two levels: every code and step, scales and minimums of both signs; the first rows
    have no steps, the largest ones, and the smallest scales and minimums that float16 holds.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks, groups = columns // nested_block(columns), columns // NESTED_GROUP
    codes = torch.randint(0, 4, (rows, columns), generator=generator)
    steps = torch.randint(0, 256, (rows, groups), generator=generator, dtype=torch.uint8)
    # A quarter: products of 1536 weights of up to 60 would come near the end of float16.
    scale, minimum = (torch.randn(2, rows, blocks, generator=generator) / 4).half()
    steps[1:2], steps[2:3] = 0, 255
    scale[3:4], minimum[4:5] = 2.0**-24, -(2.0**-24)
    return PackedWeight(pack(codes, 2), scale, 2, 0.0, minimum=minimum, steps=steps)


def magnitudes(packed: PackedWeight) -> torch.Tensor:
    """(out, in) float64: the absolute values of what a weight is the difference of, scale * code and its minimum."""
    scale, minimum = (part.double().abs() for part in reference.group_scales(packed))
    codes = unpack(packed.codes, packed.bits).double().view(*scale.shape, -1)
    return (codes * scale.unsqueeze(-1) + minimum.unsqueeze(-1)).view(packed.shape)


def random_inputs(
    rows: int, columns: int, dtype: torch.dtype, device: str = "cpu", seed: int = 1
) -> torch.Tensor:
    """Normally distributed activations with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).add(0.3).to(dtype).to(device)


def assert_is_the_product(
    outputs: torch.Tensor, inputs: torch.Tensor, packed: PackedWeight, rounded_weight: bool
) -> None:
    """Compare with the exact product: one rounding of the result (two units in the last place, since Triton's
    interpreter truncates bfloat16), float32 sums in any order, and where the weight is rounded that rounding of each
    product."""
    weight = reference.dequantize(packed).double()
    exact = inputs.double() @ weight.T
    sizes = weight.abs() if packed.steps is None else magnitudes(packed)
    terms = inputs.double().abs() @ sizes.T
    precision = torch.finfo(inputs.dtype).eps
    allowed = precision * exact.abs() + (max(precision, 1e-6) if rounded_weight else 1e-5) * terms
    allowed += torch.finfo(inputs.dtype).smallest_normal * precision
    assert outputs.dtype == inputs.dtype
    assert outputs.shape == exact.shape
    assert torch.isfinite(outputs).all()
    excess = ((outputs.double() - exact).abs() - allowed).max()
    assert excess <= 0, f"off by {excess:.3g} more than rounding explains"


def check_product(prepared: Prepared, packed: PackedWeight, inputs: torch.Tensor) -> None:
    """The product; on a GPU, where programs run in any order, the same bits again."""
    outputs = prepared(inputs)
    groups = packed.scale.shape[1]
    has_steps = packed.steps is not None  # such a weight is rounded to the inputs' type
    narrow = not has_steps and groups > 1 and packed.shape[1] // groups % 16 != 0
    decoded = narrow or inputs.shape[0] > 64 or inputs.dtype == torch.float32
    assert_is_the_product(outputs, inputs, packed, rounded_weight=decoded or has_steps)
    if inputs.is_cuda:
        assert torch.equal(prepared(inputs), outputs)
