"""Packed weights on a GPU: the Triton kernels as operators of torch, and a weight laid out for them.

Up to 64 rows of inputs are multiplied by the packed codes themselves. Above that arithmetic counts, not memory: the
weight is decoded by a kernel, and the vendor's matrix product takes it from there. So it is for float32 inputs and for
groups that are not a multiple of 16 inputs.
"""

# A launch takes plain values where a kernel declares constants.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from triton import knobs

from kernels.gpu.products import dequantize_kernel, matmul_kernel
from kernels.gpu.tuning import MAX_ROWS, Config, choose, columns_for
from kernels.packing import PackedWeight, unpack

#: Rows of a weight are padded to a multiple of this, the widest tile of the kernels.
ROW_PADDING = 64
WORDS = 16  # per row and block
ROWS_AT_A_TIME = 4096  # while a weight is laid out


def block_inputs(bits: int) -> int:
    """Inputs of one block: what 16 words of 16 bits hold."""
    return WORDS * 16 // bits


@torch.library.custom_op("upq::packed_matmul", mutates_args=())
def packed_matmul(
    inputs: torch.Tensor,
    words: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    bits: int,
    group: int,
    zeros: torch.Tensor | None = None,
) -> torch.Tensor:
    """inputs (rows, in), 1 to 64 rows of float16 or bfloat16, contiguous, times the weight: (rows, out_features).

    words: (blocks, padded, 16) int16, scale and zeros: (groups, padded), as TritonWeight lays them out, or the same
    range of rows of larger ones; group: inputs per scale, a multiple of 16, or 0 for one scale per output.
    """
    rows, in_features = inputs.shape
    padded = words.shape[1]
    outputs = inputs.new_empty(rows, out_features)
    columns = columns_for(rows)
    block = block_inputs(bits)

    def run(config: Config) -> None:
        matmul_kernel[(padded // config.tile,)](
            inputs,
            words,
            scale,
            zeros,
            outputs,
            rows,
            in_features,
            out_features,
            words.stride(0) // WORDS,
            BITS=bits,
            GROUP=group,
            RUN=math.gcd(group, block) // WORDS,
            EVEN=in_features % (block * config.slices * config.unroll) == 0,
            ASM=torch.version.cuda is not None and not knobs.runtime.interpret,
            COLUMNS=columns,
            TILE=config.tile,
            SLICES=config.slices,
            UNROLL=config.unroll,
            STAGES=config.stages,
            num_warps=config.slices,
        )

    with torch.cuda.device_of(inputs):
        problem = (
            f"{out_features}x{in_features} {bits} bits, group {group}, {columns} {inputs.dtype}"
            + ("" if zeros is None else ", zeros")
        )
        run(choose(inputs.device, columns, problem, run))
    return outputs


@packed_matmul.register_fake
def _(inputs, words, scale, out_features, bits, group, zeros=None):
    return inputs.new_empty(inputs.shape[0], out_features)


@torch.library.custom_op("upq::packed_dequantize", mutates_args=())
def packed_dequantize(
    words: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    in_features: int,
    bits: int,
    dtype: torch.dtype,
    zeros: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight (out_features, in_features): scale * (code - zero), the product rounded once to dtype."""
    blocks, padded, _ = words.shape
    weight = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    with torch.cuda.device_of(words):
        dequantize_kernel[(padded // ROW_PADDING, blocks)](
            words,
            scale,
            zeros,
            weight,
            in_features,
            out_features,
            words.stride(0) // WORDS,
            in_features // scale.shape[0],
            BITS=bits,
            TILE=ROW_PADDING,
        )
    return weight


@packed_dequantize.register_fake
def _(words, scale, out_features, in_features, bits, dtype, zeros=None):
    return words.new_empty(out_features, in_features, dtype=dtype)


class TritonWeight:
    """A packed weight in the kernels' layout, on the device of its codes. Implements kernels.Prepared.

    Keeps no reference to `packed`. ValueError if `packed` is not what the kernels compute.
    """

    def __init__(self, packed: PackedWeight) -> None:
        _check(packed)
        out_features, in_features = packed.shape
        self.out_features, self.in_features, self.bits = out_features, in_features, packed.bits
        groups = packed.scale.shape[1]
        self.group = 0 if groups == 1 else in_features // groups
        self.words = arrange(packed.codes, packed.bits)
        padding = self.words.shape[1] - out_features
        self.scale = F.pad(packed.scale.T, (0, padding)).contiguous()
        self.zeros = None
        if packed.zeros is not None:
            self.zeros = F.pad(packed.zeros.T, (0, padding)).contiguous()
        self.backend = f"INT{packed.bits} kernels, Triton"
        parts = (self.words, self.scale, self.zeros)
        self.size_bytes = sum(part.nbytes for part in parts if part is not None)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs. Sums are in float32 and repeat to the last bit."""
        flat = inputs.reshape(-1, self.in_features).contiguous()
        rows = flat.shape[0]
        half = flat.dtype in (torch.float16, torch.bfloat16)
        if half and 0 < rows <= MAX_ROWS and self.group % WORDS == 0:
            outputs = packed_matmul(
                flat,
                self.words,
                self.scale,
                self.out_features,
                self.bits,
                self.group,
                zeros=self.zeros,
            )
        else:
            outputs = F.linear(flat, self.dequantize(flat.dtype))
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) in dtype, as kernels.reference.dequantize gives it."""
        return packed_dequantize(
            self.words,
            self.scale,
            self.out_features,
            self.in_features,
            self.bits,
            dtype,
            zeros=self.zeros,
        )


def join(weights: Sequence[TritonWeight]) -> TritonWeight | None:
    """One weight that gives the outputs of all of them, one behind the other; they become ranges of its rows.

    None, and nothing is changed, where they are not of one kind or a weight but the last one has padded rows.
    """
    first = weights[0]
    alike = {
        (one.in_features, one.bits, one.group, one.zeros is None, one.scale.dtype)
        for one in weights
    }
    if len(alike) > 1 or any(one.out_features % ROW_PADDING for one in weights[:-1]):
        return None
    joined = copy.copy(first)
    joined.out_features = sum(one.out_features for one in weights)
    joined.size_bytes = sum(one.size_bytes for one in weights)
    rows = [one.words.shape[1] for one in weights]
    for name in ("words", "scale", "zeros"):
        if getattr(first, name) is None:
            continue
        whole = torch.cat([getattr(one, name) for one in weights], dim=1)
        setattr(joined, name, whole)
        for one, part in zip(weights, whole.split(rows, dim=1), strict=True):
            setattr(one, name, part)
    return joined


def arrange(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """codes: (out, in * bits / 8) uint8 -> words: (blocks, out padded, 16) int16 (kernels.gpu.products).

    Some rows and one field at a time, so that little more memory is needed than codes and words take.
    """
    rows, row_bytes = codes.shape
    blocks = -(-row_bytes // (2 * WORDS))
    padded = -(-rows // ROW_PADDING) * ROW_PADDING
    words = torch.zeros(blocks, padded, WORDS, dtype=torch.int16, device=codes.device)
    for start in range(0, rows, ROWS_AT_A_TIME):
        some = codes[start : start + ROWS_AT_A_TIME]
        target = words[:, start : start + len(some)]
        blockwise = F.pad(some, (0, blocks * 2 * WORDS - row_bytes)).view(len(some), blocks, -1)
        for field, part in enumerate(blockwise.split(2 * bits, dim=2)):
            values = unpack(part.reshape(len(some), -1), bits).to(torch.int16) << (bits * field)
            target |= values.view(len(some), blocks, WORDS).transpose(0, 1)
    return words


def _check(packed: PackedWeight) -> None:
    """ValueError with the difference between `packed` and what the kernels compute."""
    codes, scale, bits = packed.codes, packed.scale, packed.bits
    if packed.steps is not None:
        raise ValueError("no Triton kernel for scales of two levels")
    own = packed.zeros is not None
    if bits not in (2, 4, 8) or (packed.zero != (2**bits - 1) / 2 and not own):
        raise ValueError(f"no Triton kernel for {bits} bits with zero {packed.zero}")
    if codes.dtype != torch.uint8 or codes.dim() != 2 or not codes.numel():
        raise ValueError(f"codes must be a uint8 matrix, not {codes.dtype} {tuple(codes.shape)}")
    if scale.dtype not in (torch.float16, torch.float32) or scale.dim() != 2:
        raise ValueError(f"scale must be a float matrix, not {scale.dtype} {tuple(scale.shape)}")
    rows, columns = packed.shape
    if scale.shape[0] != rows or not scale.shape[1] or columns % scale.shape[1]:
        raise ValueError(
            f"scale {tuple(scale.shape)} does not divide a weight of {rows} x {columns}"
        )
    if packed.zeros is not None and packed.zeros.shape != scale.shape:
        raise ValueError(f"zeros {tuple(packed.zeros.shape)} are not of scale {tuple(scale.shape)}")
    if packed.transform:
        raise ValueError("no Triton kernel transforms activations")
    if scale.device != codes.device:
        raise ValueError(f"codes are on {codes.device}, scale is on {scale.device}")
