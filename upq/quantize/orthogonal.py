"""Orthogonal matrices that a rotation is made of: drawn at random, or Hadamard matrices with random signs.

Hadamard matrices of an order that is no power of two are built by Paley's two constructions from the squares modulo a
prime, and doubled by Sylvester's; no table is kept.
"""

from __future__ import annotations

import torch

from kernels.transform import hadamard_block
from upq.config import RotationKind
from upq.errors import UserError


def random_rotation(kind: RotationKind, width: int, largest_block: int, seed: int) -> torch.Tensor:
    """An orthogonal matrix (width, width), float64, the same for the same arguments.

    orthogonal: drawn uniformly from all. hadamard: a whole Hadamard matrix behind random signs. block_hadamard: the
    same in blocks, as the transform of activations has them (kernels.transform), of `largest_block` at most. Raises
    UserError("unsupported_rotation") where no Hadamard matrix of the width is known here.
    """
    source = torch.Generator().manual_seed(seed)
    if kind == "orthogonal":
        return _uniform(width, source)
    block = width if kind == "hadamard" else hadamard_block(width, largest_block)
    signs = torch.randint(0, 2, (width,), generator=source).double() * 2 - 1
    blocks = [hadamard_of(block) / block**0.5] * (width // block)
    return signs.unsqueeze(1) * torch.block_diag(*blocks)


def hadamard_of(order: int) -> torch.Tensor:
    """A Hadamard matrix: (order, order) of 1 and -1 in float64, whose rows are orthogonal.

    Raises UserError("unsupported_rotation") where neither construction gives one.
    """
    power = order & -order
    while power:
        if (core := _core(order // power)) is not None:
            for _ in range(power.bit_length() - 1):
                core = torch.cat([torch.cat([core, core], 1), torch.cat([core, -core], 1)])
            return core
        power //= 2
    raise UserError(
        "unsupported_rotation",
        f"absorbed_kind is hadamard, but no Hadamard matrix of order {order} can be built here.",
        "Use absorbed_kind=orthogonal or block_hadamard.",
    )


def _uniform(width: int, source: torch.Generator) -> torch.Tensor:
    """Uniform over all orthogonal matrices: the signs of R's diagonal make the factors unique."""
    drawn = torch.randn(width, width, generator=source, dtype=torch.float64)
    rotation, triangle = torch.linalg.qr(drawn)
    return rotation * triangle.diagonal().sign()


def _core(order: int) -> torch.Tensor | None:
    """A Hadamard matrix that is not doubled from a smaller one: of order 1, or by Paley from a prime; else None."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4:
        return None
    if _is_prime(order - 1):  # leaves 3 when divided by 4, since 4 divides the order
        return torch.eye(order, dtype=torch.float64) + _bordered(order - 1, -1)
    half = order // 2
    if half % 4 == 2 and _is_prime(half - 1):  # the prime leaves 1
        ones, mixed = torch.tensor([[[1, 1], [1, -1]], [[1, -1], [-1, -1]]], dtype=torch.float64)
        return torch.kron(_bordered(half - 1, 1), ones) + torch.kron(torch.eye(half), mixed)
    return None


def _bordered(prime: int, below: int) -> torch.Tensor:
    """Paley's matrix of 0 on the diagonal and 1, -1 elsewhere, (prime + 1, prime + 1): whether the difference of two
    numbers is a square modulo the prime, bordered by ones in the first row and `below` in the first column.
    """
    numbers = torch.arange(prime)
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[numbers.square() % prime] = 1.0
    character[0] = 0.0
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1.0, below
    matrix[1:, 1:] = character[(numbers.unsqueeze(1) - numbers) % prime]
    return matrix


def _is_prime(number: int) -> bool:
    divisors = range(2, int(number**0.5) + 1)
    return number > 1 and all(number % divisor for divisor in divisors)
