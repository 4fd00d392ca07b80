"""RMS norms on a GPU for training: one launch forward and two backward, where torch takes a dozen and more each.

    y = weight * (x / sqrt(mean(x^2) + epsilon))

rounded to the type of x before and after the weight, as transformers does. The weight is `base`, or base * exp(gain)
rounded to that type where gains are trained (upq.training.trainables). Sums are in float32 and in a fixed order.
"""

# Triton compiles the kernels of this file; a launch takes plain values where they declare constants.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from kernels.gpu.training import exponential, rounded

#: Programs of a backward pass, each of which adds up the gains' gradients of its rows.
PROGRAMS = 256
#: Widest rows, of which a program holds one in its registers, and how much of one goes to each of its warps.
MAX_WIDTH, WARP_WIDTH = 16_384, 512


@triton.jit
def _weights(base, gain, column, inside, dtype: tl.constexpr, PLAIN: tl.constexpr):
    """The norm's weights as float32 numbers of type dtype."""
    weight = tl.load(base + column, mask=inside, other=0.0).to(tl.float32)
    if gain is not None:
        weight *= exponential(tl.load(gain + column, mask=inside, other=0.0), PLAIN)
    return rounded(weight, dtype, PLAIN).to(tl.float32)


@triton.jit
def norm_kernel(
    inputs,  # (rows, size)
    base,  # (size,)
    gain,  # (size,) float32, or None
    outputs,  # as inputs
    size,
    epsilon,
    WIDTH: tl.constexpr,  # size, padded to a power of two
    PLAIN: tl.constexpr,  # for Triton's interpreter
):
    """The norm of one row."""
    column = tl.arange(0, WIDTH)
    inside = column < size
    place = tl.program_id(0).to(tl.int64) * size + column
    dtype: tl.constexpr = inputs.dtype.element_ty
    values = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / size + epsilon)
    normal = rounded(values * inverse, dtype, PLAIN).to(tl.float32)
    weight = _weights(base, gain, column, inside, dtype, PLAIN)
    tl.store(outputs + place, rounded(normal * weight, dtype, PLAIN), mask=inside)


@triton.jit
def norm_backward_kernel(
    inputs,  # (rows, size)
    base,  # (size,)
    gain,  # (size,) float32, or None
    gradient,  # (rows, size), of the loss by the outputs
    by_inputs,  # as inputs, a result
    by_gain,  # (programs, size) float32, a result to be added up; None where gain is
    rows,
    size,
    epsilon,
    WIDTH: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """Gradients by some rows of inputs and, summed over these rows, by the gains."""
    column = tl.arange(0, WIDTH)
    inside = column < size
    dtype: tl.constexpr = inputs.dtype.element_ty
    weight = _weights(base, gain, column, inside, dtype, PLAIN)
    total = tl.zeros((WIDTH,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        place = tl.cast(row, tl.int64) * size + column
        values = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32)
        arriving = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * weight
        inverse = tl.rsqrt(tl.sum(values * values, axis=0) / size + epsilon)
        normal = values * inverse
        share = tl.sum(arriving * normal, axis=0) / size
        result = inverse * (arriving - normal * share)
        tl.store(by_inputs + place, rounded(result, dtype, PLAIN), mask=inside)
        total += arriving * normal
    if gain is not None:
        tl.store(by_gain + tl.program_id(0) * size + column, total, mask=inside)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: torch.Tensor,
        base: torch.Tensor,
        gain: torch.Tensor | None,
        epsilon: float,
    ) -> torch.Tensor:
        hidden = hidden.contiguous()
        outputs, size = torch.empty_like(hidden), hidden.shape[-1]
        with torch.cuda.device_of(hidden):
            norm_kernel[(hidden.numel() // size,)](
                hidden, base, gain, outputs, size, epsilon, **_shape(size)
            )
        context.save_for_backward(hidden, base, gain)
        context.epsilon = epsilon
        return outputs

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, base, gain = context.saved_tensors
        by_inputs, size = torch.empty_like(hidden), hidden.shape[-1]
        rows = hidden.numel() // size
        programs = min(rows, PROGRAMS)
        by_gain = None if gain is None else gain.new_empty(programs, size)
        with torch.cuda.device_of(hidden):
            norm_backward_kernel[(programs,)](
                hidden,
                base,
                gain,
                gradient.contiguous(),
                by_inputs,
                by_gain,
                rows,
                size,
                context.epsilon,
                **_shape(size),
            )
        return by_inputs, None, None if by_gain is None else by_gain.sum(0), None


def _shape(size: int) -> dict[str, Any]:
    width = triton.next_power_of_2(size)
    return {
        "WIDTH": width,
        "PLAIN": knobs.runtime.interpret,
        "num_warps": min(16, max(4, width // WARP_WIDTH)),
    }


def rms_norm(
    hidden: torch.Tensor, base: torch.Tensor, gain: torch.Tensor | None, epsilon: float
) -> torch.Tensor:
    """The norm of hidden (..., size), size at most MAX_WIDTH, differentiable in hidden and gain.

    base: (size,), contiguous, of any float type; gain: (size,) float32 logarithms of what it is multiplied by, or None.
    """
    return _RmsNorm.apply(hidden, base, gain, epsilon)
