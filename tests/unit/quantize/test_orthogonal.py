"""The matrices that a rotation is made of are orthogonal, and those of a seed are always the same."""

from typing import get_args

import pytest
import torch

from kernels.transform import hadamard
from upq.config import RotationKind
from upq.errors import UserError
from upq.quantize.orthogonal import hadamard_of, random_rotation

KINDS = get_args(RotationKind)
#: Paley I gives 12, 20, 24, 44, 60, 140; Paley II gives 28, 36, 76; the others are doubled from these or from 1.
ORDERS = [1, 2, 4, 12, 20, 24, 28, 36, 40, 44, 56, 60, 64, 72, 76, 140, 576, 896, 960, 2560]


@pytest.mark.parametrize("order", ORDERS)
def test_a_hadamard_matrix_has_signs_alone_and_orthogonal_rows(order: int) -> None:
    matrix = hadamard_of(order)
    assert torch.equal(matrix.abs(), torch.ones(order, order, dtype=torch.float64))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [3, 6, 18, 92, 172])
def test_an_order_that_cannot_be_built_is_refused_with_what_to_do(order: int) -> None:
    with pytest.raises(UserError, match=f"order {order}") as caught:
        hadamard_of(order)
    assert caught.value.code == "unsupported_rotation"
    assert "absorbed_kind" in caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [16, 24, 96])
def test_a_rotation_is_orthogonal_and_belongs_to_its_seed(kind: RotationKind, width: int) -> None:
    rotation = random_rotation(kind, width, 8, 1)
    torch.testing.assert_close(
        rotation @ rotation.T, torch.eye(width, dtype=torch.float64), atol=1e-13, rtol=0
    )
    assert torch.equal(rotation, random_rotation(kind, width, 8, 1))
    assert not torch.equal(rotation, random_rotation(kind, width, 8, 2))


def test_a_block_hadamard_is_the_transform_of_activations_behind_its_signs() -> None:
    rotation = random_rotation("block_hadamard", 24, 64, 0)
    signs = rotation[:, ::8].sum(1).sign()  # in the first column of a block there is no other sign
    values = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(values @ rotation, hadamard(values * signs, 8))


def test_uniform_rotations_have_no_preferred_direction() -> None:
    drawn = torch.stack([random_rotation("orthogonal", 4, 1, seed) for seed in range(800)])
    assert (
        drawn.mean(0).abs().max() < 0.08
    )  # each entry: mean 0, variance 1/4 and so 0.018 in the mean
    torch.testing.assert_close(
        drawn.square().mean(0), torch.full((4, 4), 0.25, dtype=torch.float64), atol=0.04, rtol=0
    )
