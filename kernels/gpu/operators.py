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
from kernels.packing import NESTED_GROUP, PackedWeight, unpack

#: Rows of a weight are padded to a multiple of this, the widest tile of the kernels.
ROW_PADDING = 64
WORDS = 16  # per row and block
ROWS_AT_A_TIME = 4096  # while a weight is laid out


def middle(bits: int) -> float:
    """The middle of the codes."""
    return (2**bits - 1) / 2


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
    zero: float,
    zeros: torch.Tensor | None = None,
    minimum: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """inputs (rows, in), 1 to 64 rows of float16 or bfloat16, contiguous, times the weight: (rows, out_features).

    words: (blocks, padded, 16) int16, scale, zeros and minimum: (groups, padded), steps: (in / 64, padded), as
    TritonWeight lays them out, or the same range of rows of larger ones; group: inputs per scale, a multiple of 16, or
    0 for one scale per output, where scales have one level; zero: of the grid.
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
            minimum,
            steps,
            outputs,
            rows,
            in_features,
            out_features,
            words.stride(0) // WORDS,
            BITS=bits,
            ZERO=zero,
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
            + ("" if steps is None else ", steps")
        )
        run(choose(inputs.device, columns, problem, run))
    return outputs


@packed_matmul.register_fake
def _(inputs, words, scale, out_features, bits, group, zero, zeros=None, minimum=None, steps=None):
    return inputs.new_empty(inputs.shape[0], out_features)


@torch.library.custom_op("upq::packed_dequantize", mutates_args=())
def packed_dequantize(
    words: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
    in_features: int,
    bits: int,
    dtype: torch.dtype,
    zero: float,
    zeros: torch.Tensor | None = None,
    minimum: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight (out_features, in_features), rounded once to dtype; the rest as packed_matmul takes it."""
    blocks, padded, _ = words.shape
    weight = torch.empty(out_features, in_features, dtype=dtype, device=words.device)
    with torch.cuda.device_of(words):
        dequantize_kernel[(padded // ROW_PADDING, blocks)](
            words,
            scale,
            zeros,
            minimum,
            steps,
            weight,
            in_features,
            out_features,
            words.stride(0) // WORDS,
            in_features // scale.shape[0],
            BITS=bits,
            ZERO=zero,
            TILE=ROW_PADDING,
        )
    return weight


@packed_dequantize.register_fake
def _(
    words, scale, out_features, in_features, bits, dtype, zero, zeros=None, minimum=None, steps=None
):
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
        self.group = 0 if groups == 1 and packed.steps is None else in_features // groups
        self.zero = _subtracted(packed)
        tensors = packed.tensors
        if packed.steps is not None:
            tensors["steps"] = in_words(packed.steps)
        words = arrange(tensors.pop("codes"), packed.bits)
        padding = words.shape[1] - out_features
        #: Words, scale and what else the grid has, by the names of the operators' parameters; dimension 1 is the rows.
        self.parts = {"words": words} | {
            name: F.pad(tensor.T, (0, padding)).contiguous() for name, tensor in tensors.items()
        }
        self.backend = f"INT{packed.bits} kernels, Triton"
        self.size_bytes = sum(part.nbytes for part in self.parts.values())

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., in) -> (..., out), in the dtype of inputs. Sums are in float32 and repeat to the last bit."""
        flat = inputs.reshape(-1, self.in_features).contiguous()
        rows = flat.shape[0]
        half = flat.dtype in (torch.float16, torch.bfloat16)
        if half and 0 < rows <= MAX_ROWS and self.group % WORDS == 0:
            outputs = packed_matmul(
                flat,
                out_features=self.out_features,
                bits=self.bits,
                group=self.group,
                zero=self.zero,
                **self.parts,
            )
        else:
            outputs = F.linear(flat, self.dequantize(flat.dtype))
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight (out, in) in dtype, as kernels.reference.dequantize gives it."""
        return packed_dequantize(
            out_features=self.out_features,
            in_features=self.in_features,
            bits=self.bits,
            dtype=dtype,
            zero=self.zero,
            **self.parts,
        )


def join(weights: Sequence[TritonWeight]) -> TritonWeight | None:
    """One weight that gives the outputs of all of them, one behind the other; they become ranges of its rows.

    None, and nothing is changed, where they are not of one kind or a weight but the last one has padded rows.
    """
    first = weights[0]
    alike = {
        (
            *(one.in_features, one.bits, one.group, one.zero),
            *((name, part.dtype) for name, part in one.parts.items()),
        )
        for one in weights
    }
    if len(alike) > 1 or any(one.out_features % ROW_PADDING for one in weights[:-1]):
        return None
    joined = copy.copy(first)
    joined.out_features = sum(one.out_features for one in weights)
    joined.size_bytes = sum(one.size_bytes for one in weights)
    joined.parts = {}
    rows = [one.parts["words"].shape[1] for one in weights]
    for name in first.parts:
        joined.parts[name] = torch.cat([one.parts[name] for one in weights], dim=1)
        for one, part in zip(weights, joined.parts[name].split(rows, dim=1), strict=True):
            one.parts[name] = part
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


def in_words(steps: torch.Tensor) -> torch.Tensor:
    """steps: (out, in / 16) uint8 -> (out, in / 64, rounded up) int32: those of four groups, the first one lowest."""
    return F.pad(steps, (0, -steps.shape[1] % 4)).contiguous().view(torch.int32)


def _subtracted(packed: PackedWeight) -> float:
    """What the kernels subtract from every code before anything else."""
    if packed.steps is not None:
        return 0.0
    return packed.zero if packed.zeros is None else middle(packed.bits)


def _check(packed: PackedWeight) -> None:
    """ValueError with the difference between `packed` and what the kernels compute."""
    codes, scale, bits = packed.codes, packed.scale, packed.bits
    if bits not in (2, 4, 8) or (packed.steps is not None and bits != 2):
        raise ValueError(f"no Triton kernel for {bits} bits")
    if _subtracted(packed) not in (0.0, middle(bits), 2 ** (bits - 1)):
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
    if packed.steps is not None and packed.steps.shape != (rows, columns // NESTED_GROUP):
        raise ValueError(f"steps {tuple(packed.steps.shape)} are not of {rows} x {columns}")
    if packed.transform:
        raise ValueError("no Triton kernel transforms activations")
    if scale.device != codes.device:
        raise ValueError(f"codes are on {codes.device}, scale is on {scale.device}")
