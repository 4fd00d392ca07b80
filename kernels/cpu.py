"""Weights laid out for the C kernels, and products with them: 2-, 4- and 8-bit codes times 8-bit activations.

Activations are rounded to 8 bits with one scale per token and SPAN consecutive columns; the product of
codes and activations is then exact in integers, scaled and summed in float32 (csrc/matrix.h).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from functools import lru_cache

import torch

from kernels import build
from kernels.packing import PackedWeight

PANEL = 16  # rows side by side
SPAN = 32  # columns that share a scale of the activations; columns are padded to a multiple of it
HALF = 16  # bits of a matrix of 16-bit floats

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
        ("bias", ctypes.c_void_p),
    ]


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
        *(pointer, number, pointer, pointer, pointer, number, pointer, pointer),
    ]
    return kernels


def unsupported(packed: PackedWeight) -> str:
    """Why the kernels cannot take a weight; "" where they can."""
    columns, groups = packed.shape[1], packed.scale.shape[1]
    if packed.bits not in (2, 4, 8):
        return f"{packed.bits} bits"
    if packed.scale.dtype != torch.float16:
        return f"scales of type {packed.scale.dtype}"
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
    return -(-rows // PANEL) * PANEL * padded(columns) * bits // 8


class Panels:
    """A matrix in the layout of the C kernels, with the memory it points to.

    weight: packed codes or (out, in) floats. span: SPAN, or 0 for activations as they are.
    """

    def __init__(
        self,
        kernels: ctypes.CDLL,
        weight: PackedWeight | torch.Tensor,
        bias: torch.Tensor | None = None,
        span: int = SPAN,
        arena: Arena | None = None,
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
        self.scale = self.zeros = None
        self.struct = Matrix(bits, rows, padded(columns), padded(columns), span)
        self.struct.data = self.data.data_ptr()
        if isinstance(weight, PackedWeight):
            self._add_grid(weight)
        if self.bias is not None:
            self.struct.bias = self.bias.data_ptr()

    def _add_grid(self, packed: PackedWeight) -> None:
        groups = packed.scale.shape[1]
        self.scale = _in_panels(packed.scale)
        self.struct.scale, self.struct.zero = self.scale.data_ptr(), packed.zero
        self.struct.group = self.struct.columns // groups
        if packed.zeros is not None:
            self.zeros = _in_panels(packed.zeros)
            self.struct.zeros = self.zeros.data_ptr()

    @property
    def size_bytes(self) -> int:
        """Bytes of codes, scales and zeros in memory."""
        parts = (self.data, self.scale, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)


def _in_panels(per_group: torch.Tensor) -> torch.Tensor:
    """(rows, groups) -> (panels, groups, 16), the missing rows of the last panel zero."""
    rows, groups = per_group.shape
    whole = per_group.new_zeros(-(-rows // PANEL) * PANEL, groups)
    whole[:rows] = per_group
    return whole.view(-1, PANEL, groups).transpose(1, 2).contiguous()


class CpuWeight:
    """A packed weight behind the C kernels (`kernels.Prepared`)."""

    def __init__(
        self, packed: PackedWeight, kernels: ctypes.CDLL, instruction_set: str, threads: int = 0
    ) -> None:
        self.kernels, self.panels = kernels, Panels(kernels, packed)
        self.threads = threads or torch.get_num_threads()
        self.backend = f"INT{packed.bits} kernels, {instruction_set}"
        self.size_bytes = self.panels.size_bytes

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs."""
        matrix = self.panels.struct
        rows = inputs.reshape(-1, self.panels.columns)
        tokens = rows.shape[0]
        outputs = torch.empty(tokens, self.panels.rows)
        if tokens:
            values = torch.zeros(tokens, matrix.columns)
            values[:, : self.panels.columns] = rows
            room = torch.empty(
                tokens * (matrix.columns + 8 * matrix.columns // matrix.span), dtype=torch.uint8
            )
            failed = self.kernels.multiply(
                ctypes.byref(matrix),
                *(tokens, values.data_ptr(), room.data_ptr(), outputs.data_ptr(), self.threads),
            )
            if failed:
                raise RuntimeError("The operating system refused to make a thread.")
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.panels.rows)
