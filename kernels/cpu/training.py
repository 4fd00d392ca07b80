"""Fake quantization in C for training on a CPU: forward and backward in one pass over memory each.

upq/layers/fake.py defines what is computed; this gives the same numbers up to the order of sums.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from kernels.cpu import panels

#: Columns that share a scale have to be a multiple of it: the widest vector.
LANES = 16
DTYPES = (torch.float32, torch.bfloat16)


class _FakeQuant(ctypes.Structure):
    """csrc/training.h, FakeQuant."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "columns", "group", "levels", "half")),
        ("share", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "offset", "quantized")),
        *((name, ctypes.c_void_p) for name in ("gradient", "weight_gradient", "scale_gradient")),
        ("zero_gradient", ctypes.c_void_p),
    ]


def is_usable(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the C code takes a weight (out, in) with scale (out, groups) and results in dtype."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == scale.dtype == torch.float32
        and weight.is_contiguous()
        and dtype in DTYPES
        and weight.numel() > 0
        and (weight.shape[1] // scale.shape[1]) % LANES == 0
        and panels.library() is not None
    )


def forward(
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The nearest levels (out, in) in dtype: scale * code - offset, both (out, groups) and contiguous.

    offset None: zero lies in the middle of the codes.
    """
    quantized = torch.empty_like(weight, dtype=dtype)
    task = _task(weight, scale, offset, levels, quantized)
    _run("fake_quantize", task)
    return quantized


def backward(
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: int,
    share: float,
    quantized: torch.Tensor,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients by weight (out, in), by the logarithm of scale and by offset / scale (out, groups), all float32."""
    task = _task(weight, scale, offset, levels, quantized)
    gradient = gradient.to(quantized.dtype).contiguous()
    weight_gradient = torch.empty_like(weight)
    scale_gradient = torch.empty_like(scale, memory_format=torch.contiguous_format)
    zero_gradient = None if offset is None else torch.empty_like(scale_gradient)
    task.share, task.gradient = share, gradient.data_ptr()
    task.weight_gradient = weight_gradient.data_ptr()
    task.scale_gradient = scale_gradient.data_ptr()
    task.zero_gradient = None if zero_gradient is None else zero_gradient.data_ptr()
    _run("fake_quantize_backward", task)
    return weight_gradient, scale_gradient, zero_gradient


def _task(
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: int,
    quantized: torch.Tensor,
) -> _FakeQuant:
    """scale and offset have to be contiguous, and all tensors to live until the task has run."""
    rows, columns = weight.shape
    return _FakeQuant(
        rows,
        columns,
        columns // scale.shape[1],
        levels,
        quantized.dtype == torch.bfloat16,
        weight=weight.data_ptr(),
        scale=scale.data_ptr(),
        offset=None if offset is None else offset.data_ptr(),
        quantized=quantized.data_ptr(),
    )


@cache
def _team() -> ctypes.c_void_p:
    """What calls a function on threads of torch's own, of OpenMP; null where torch has others.

    Between two operations its threads wait awake for the next one. Threads beside them would share their cores.
    """
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, ctypes.c_void_p) if function else ctypes.c_void_p()


def _run(name: str, task: _FakeQuant) -> None:
    function = getattr(panels.library(), name)
    if function(ctypes.byref(task), _team(), ctypes.c_int32(torch.get_num_threads())):
        raise RuntimeError("The operating system refused to make a thread.")
