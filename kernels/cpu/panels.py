"""Weights laid out for the C kernels, and products with them: 2-, 4- and 8-bit codes times 8-bit activations.

Activations are rounded to 8 bits with one scale per token and SPAN consecutive columns, those of a token's coarsest
spans to 16; the product of codes and activations is then exact in integers, scaled and summed in float32
(csrc/matrix.h).
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import math
import mmap
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from kernels.cpu import build
from kernels.packing import NESTED_GROUP, PackedWeight
from kernels.transform import Transform

PANEL = 16  # rows side by side
SPAN = 32  # columns that share a scale of the activations; columns are padded to a multiple of it
HALF = 16  # bits of a matrix of 16-bit floats
LARGEST_BLOCK = 4096  # outputs that one thread transforms together

_logger = logging.getLogger(__name__)


class Matrix(ctypes.Structure):
    """csrc/matrix.h, Matrix."""

    _fields_ = [
        ("bits", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("span", ctypes.c_int32),
        ("zero", ctypes.c_float),
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
    ]


class InputTransform(ctypes.Structure):
    """csrc/transform.h, InputTransform, with the tensors that it points to."""

    _fields_ = [
        ("block", ctypes.c_int32),
        ("scale", ctypes.c_void_p),
        ("affine", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
    ]

    def __init__(self, block: int, **tensors: torch.Tensor | None) -> None:
        self.tensors = [tensor for tensor in tensors.values() if tensor is not None]
        pointers = {
            name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None
        }
        super().__init__(block, **pointers)


class OutputTransform(ctypes.Structure):
    """csrc/transform.h, OutputTransform, with the tensor that it points to."""

    _fields_ = [("block", ctypes.c_int32), ("scale", ctypes.c_void_p)]

    def __init__(self, block: int, scale: torch.Tensor | None) -> None:
        self.tensors = [] if scale is None else [scale]
        super().__init__(block, scale.data_ptr() if scale is not None else None)


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels of this processor; None, with the reason in the log, where they cannot be had."""
    try:
        return bind(build.load())
    except build.BuildError as error:
        _logger.warning("Slower kernels are used on this CPU. %s", error)
        return None


def bind(kernels: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the functions that take more than pointers."""
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    kernels.multiply.argtypes = [pointer, number, pointer, pointer, pointer, number]
    kernels.lay_out.argtypes = [number, number, number, pointer, pointer]
    kernels.session_new.argtypes = [pointer, number, number, number, pointer, pointer]
    kernels.session_new.restype = pointer
    kernels.session_free.argtypes = [pointer]
    kernels.session_forward.argtypes = [
        pointer,
        number,
        pointer,
        pointer,
        pointer,
        number,
        pointer,
        pointer,
    ]
    kernels.session_recall.argtypes = [pointer, number, number, number, pointer]
    return kernels


def unsupported(packed: PackedWeight) -> str:
    """Why the kernels cannot take a weight; "" where they can."""
    columns, groups = packed.shape[1], packed.scale.shape[1]
    if packed.bits not in (2, 4, 8):
        return f"{packed.bits} bits"
    if packed.scale.dtype != torch.float16:
        return f"scales of type {packed.scale.dtype}"
    if packed.transform and packed.transform.block_out > LARGEST_BLOCK:
        return f"Hadamard blocks of {packed.transform.block_out} outputs"
    if packed.steps is not None:
        return "" if packed.bits == 2 else f"{packed.bits} bits with scales of two levels"
    if groups > 1 and (columns // groups) % SPAN:
        return f"groups of {columns // groups} columns; {SPAN} or a multiple of it is needed"
    return ""


def padded(columns: int) -> int:
    """Columns as the kernels count them."""
    return -(-columns // SPAN) * SPAN


class Arena:
    """One block of zeroed memory for many matrices, in huge pages where the system has them: reads are half as fast
    again as from small pages, where every 4 KiB cost a translation.
    """

    ALIGNMENT = 64

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, max(size, 1))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)
        self._used = 0

    def take(self, size: int) -> torch.Tensor:
        """The next `size` bytes."""
        start = self._used
        self._used = start + -(-size // self.ALIGNMENT) * self.ALIGNMENT
        return self._memory[start : start + size]

    @classmethod
    def room(cls, weight: PackedWeight | torch.Tensor) -> int:
        """Bytes that a matrix takes from an arena."""
        return -(-_panel_bytes(weight) // cls.ALIGNMENT) * cls.ALIGNMENT


def _panel_bytes(weight: PackedWeight | torch.Tensor) -> int:
    bits = weight.bits if isinstance(weight, PackedWeight) else HALF
    rows, columns = weight.shape
    return _whole(rows) * padded(columns) * bits // 8


class Panels:
    """A matrix in the layout of the C kernels, with the memory it points to.

    weight: packed codes or (out, in) floats. span: SPAN, or 0 for activations as they are. known: the input transforms
    of other matrices, which this one shares where it has an equal one, and adds to.
    """

    def __init__(
        self,
        kernels: ctypes.CDLL,
        weight: PackedWeight | torch.Tensor,
        bias: torch.Tensor | None = None,
        span: int = SPAN,
        arena: Arena | None = None,
        known: dict[Any, InputTransform] | None = None,
    ) -> None:
        rows, columns = weight.shape
        self.rows, self.columns = rows, columns
        if isinstance(weight, PackedWeight):
            bits, codes = weight.bits, weight.codes.contiguous()
        else:
            bits, codes = HALF, weight.detach().to(torch.float16).contiguous()
        self.data = (arena or Arena(Arena.room(weight))).take(_panel_bytes(weight))
        kernels.lay_out(bits, rows, columns, codes.data_ptr(), self.data.data_ptr())
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.scale = self.zeros = self.minimum = self.steps = self.inputs = self.outputs = None
        self.struct = Matrix(bits, rows, padded(columns), padded(columns), span)
        self.struct.data = self.data.data_ptr()
        if isinstance(weight, PackedWeight):
            self._add_grid(weight)
            if weight.transform:
                self._add_transform(weight.transform, {} if known is None else known)
        if self.bias is not None:
            self.struct.bias = self.bias.data_ptr()

    def _add_grid(self, packed: PackedWeight) -> None:
        columns, groups = self.struct.columns, packed.scale.shape[1]
        self.struct.zero, self.struct.group = packed.zero, columns // groups
        if packed.steps is not None:
            self.struct.group = self.columns // groups  # the padding has no scale and is not read
            groups = columns // self.struct.group
            self.steps = _in_panels(packed.steps, columns // NESTED_GROUP)
            self.struct.steps = self.steps.data_ptr()
        self.scale = _in_panels(packed.scale, groups)
        self.struct.scale = self.scale.data_ptr()
        if packed.minimum is not None:
            self.minimum = _in_panels(packed.minimum, groups)
            self.struct.minimum = self.minimum.data_ptr()
        if packed.zeros is not None:
            self.zeros = _in_panels(packed.zeros, groups)
            self.struct.zeros = self.zeros.data_ptr()

    def _add_transform(self, transform: Transform, known: dict[Any, InputTransform]) -> None:
        scale = _with_norm(
            transform.scale_in, transform.block_in, self.columns, self.struct.columns
        )
        parts = {
            "scale": scale,
            "affine": _floats(transform.affine),
            "shift": _floats(transform.shift),
        }
        if any(part is not None for part in parts.values()):
            key = transform.block_in, *map(_content, parts.values())
            self.inputs = known.setdefault(key, InputTransform(transform.block_in, **parts))
            self.struct.inputs = ctypes.addressof(self.inputs)
        scale = _with_norm(transform.scale_out, transform.block_out, self.rows, _whole(self.rows))
        if scale is not None:
            self.outputs = OutputTransform(transform.block_out, scale)
            self.struct.outputs = ctypes.addressof(self.outputs)

    def room(self, tokens: int) -> torch.Tensor:
        """Memory that the kernels need to multiply the activations of tokens (csrc/decoder.h, multiply)."""
        columns, span = self.struct.columns, self.struct.span
        as_codes = 2 * columns + 9 * columns // span + 4 * columns // NESTED_GROUP if span else 0
        return torch.empty(tokens * (4 + as_codes), dtype=torch.uint8)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Codes, scales and what else belongs to the grid, and transforms in memory; those of equal input transforms
        are the same.
        """
        grid = (self.data, self.scale, self.zeros, self.minimum, self.steps)
        parts = [part for part in grid if part is not None]
        transforms = [part.tensors for part in (self.inputs, self.outputs) if part is not None]
        return [*parts, *itertools.chain(*transforms)]


def memory_bytes(matrices: Iterable[Panels]) -> int:
    """Bytes of the tensors of matrices, shared ones counted once."""
    tensors = [tensor for matrix in matrices for tensor in matrix.tensors]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _with_norm(
    scale: torch.Tensor | None, block: int, size: int, padded_size: int
) -> torch.Tensor | None:
    """Factors (padded_size,) of a transform with the factor of its orthonormal Hadamard; None for ones."""
    if scale is None and block == 1:
        return None
    whole = torch.zeros(padded_size)
    whole[:size] = (1 if scale is None else scale.float()) / math.sqrt(block)
    return whole


def _floats(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float().contiguous()


def _content(tensor: torch.Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.numpy().tobytes()


def _whole(rows: int) -> int:
    return -(-rows // PANEL) * PANEL


def _in_panels(per_group: torch.Tensor, groups: int) -> torch.Tensor:
    """(rows, groups or fewer) -> (panels, groups, 16); the missing rows of the last panel and groups are zero."""
    rows, given = per_group.shape
    whole = per_group.new_zeros(_whole(rows), groups)
    whole[:rows, :given] = per_group
    return whole.view(-1, PANEL, groups).transpose(1, 2).contiguous()


class CpuWeight:
    """A packed weight behind the C kernels (`kernels.Prepared`)."""

    def __init__(
        self, packed: PackedWeight, kernels: ctypes.CDLL, instruction_set: str, threads: int = 0
    ) -> None:
        self.kernels, self.panels = kernels, Panels(kernels, packed)
        self.threads = threads or torch.get_num_threads()
        self.backend = f"INT{packed.bits} kernels, {instruction_set}"
        self.size_bytes = memory_bytes([self.panels])

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs."""
        matrix = self.panels.struct
        rows = inputs.reshape(-1, self.panels.columns)
        tokens = rows.shape[0]
        outputs = torch.empty(tokens, self.panels.rows)
        if tokens:
            values = torch.zeros(tokens, matrix.columns)
            values[:, : self.panels.columns] = rows
            room = self.panels.room(tokens)
            failed = self.kernels.multiply(
                ctypes.byref(matrix),
                tokens,
                values.data_ptr(),
                room.data_ptr(),
                outputs.data_ptr(),
                self.threads,
            )
            if failed:
                raise RuntimeError("The operating system refused to make a thread.")
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.panels.rows)
