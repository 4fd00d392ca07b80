"""Packed weights and inputs on which a kernel must agree with the definition, on any device."""

import torch

from kernels import Prepared, reference
from kernels.packing import PackedWeight, pack

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


def random_packed(
    bits: int, rows: int, columns: int, groups: int, device: str = "cpu", seed: int = 0
) -> PackedWeight:
    """A packed weight with every code and scales between 0.01 and 1.01."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator)
    scale = torch.rand(rows, groups, generator=generator).add(0.01).half()
    return PackedWeight(pack(codes, bits).to(device), scale.to(device), bits, (2**bits - 1) / 2)


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
    terms = inputs.double().abs() @ weight.abs().T
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
    narrow = groups > 1 and packed.shape[1] // groups % 16 != 0
    decoded = narrow or inputs.shape[0] > 64 or inputs.dtype == torch.float32
    assert_is_the_product(outputs, inputs, packed, rounded_weight=decoded)
    if inputs.is_cuda:
        assert torch.equal(prepared(inputs), outputs)
