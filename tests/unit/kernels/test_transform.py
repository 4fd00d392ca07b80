"""Transforms around a packed matrix: orthonormal Hadamards, undone exactly, and the same map three ways."""

from __future__ import annotations

import pytest
import torch

from kernels.packing import PackedWeight, pack
from kernels.reference import dequantize, matmul, weight_of
from kernels.transform import (
    PARTS,
    Transform,
    hadamard,
    hadamard_block,
    hadamard_matrix,
    part_shapes,
)


def signs(count: int) -> torch.Tensor:
    return torch.randint(0, 2, (count,)).float() * 2 - 1


def full_transform(rows: int, columns: int) -> Transform:
    return Transform(
        block_in=hadamard_block(columns, 64),
        block_out=hadamard_block(rows, 32),
        scale_in=signs(columns) * (1 + 0.1 * torch.rand(columns)),
        scale_out=signs(rows) * (1 + 0.1 * torch.rand(rows)),
        affine=torch.eye(4) + 0.2 * torch.randn(4, 4),
        shift=0.1 * torch.randn(4),
    )


@pytest.mark.parametrize("size", [1, 2, 8, 64, 128])
def test_hadamard_matrix_is_orthonormal_and_symmetric(size: int) -> None:
    matrix = hadamard_matrix(size, torch.float64, torch.device("cpu"))
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T)


def test_every_part_has_a_name_and_a_shape() -> None:
    whole = full_transform(rows=32, columns=64)
    assert PARTS == ("scale_in", "scale_out", "affine", "shift")
    assert {name: part.shape for name, part in whole.tensors.items()} == part_shapes(32, 64)


def test_training_uses_the_matrix_that_decoding_made() -> None:
    hadamard_matrix.cache_clear()
    with torch.inference_mode():
        hadamard(torch.randn(2, 64), 64)
    values = torch.randn(2, 64, requires_grad=True)
    hadamard(values, 64).square().sum().backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, 2 * values, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "largest", "block"), [(576, 64, 64), (1536, 128, 128), (1536, 1024, 512), (7, 64, 1)]
)
def test_block_is_the_power_of_two_that_fits(width: int, largest: int, block: int) -> None:
    assert hadamard_block(width, largest) == block


def test_hadamard_is_its_own_inverse_and_keeps_lengths() -> None:
    values = torch.randn(3, 576)
    rotated = hadamard(values, 64)
    assert torch.allclose(hadamard(rotated, 64), values, atol=1e-5)
    assert torch.allclose(rotated.norm(dim=-1), values.norm(dim=-1), rtol=1e-5)
    assert not torch.allclose(rotated, values)


def test_rotate_then_dense_gives_the_weight_back() -> None:
    weight = torch.randn(96, 576)
    around = Transform(64, 32, signs(576), signs(96))
    assert torch.allclose(around.dense(around.rotate(weight)), weight, atol=1e-5)


def test_activations_meet_the_same_map_as_the_dense_weight() -> None:
    rows, columns = 96, 576
    codes = torch.randint(0, 4, (rows, columns))
    scale = (0.5 + torch.rand(rows, columns // 64)).half()
    packed = PackedWeight(pack(codes, 2), scale, 2, 1.5, transform=full_transform(rows, columns))
    inputs = torch.randn(5, columns)
    expected = inputs @ weight_of(packed).T
    assert torch.allclose(matmul(inputs, packed), expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(inputs @ dequantize(packed).T, expected, rtol=1e-1, atol=1e-1)


def test_lattice_stands_for_affine_map_of_the_codes() -> None:
    codes = torch.randint(0, 4, (1, 4))
    affine, shift = torch.randn(4, 4), torch.randn(4)
    packed = PackedWeight(
        pack(codes, 2), torch.ones(1, 1), 2, 1.5, transform=Transform(affine=affine, shift=shift)
    )
    assert torch.allclose(weight_of(packed)[0], affine @ (codes[0] - 1.5) + shift, atol=1e-6)
