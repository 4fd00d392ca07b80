"""Triton kernels over packed weights: a product with 1 to 64 rows, and dequantising.

Layout of the codes ("words", made by kernels.gpu.operators): uint16 (blocks, rows, 16). A block is 256 / bits
consecutive inputs; field f of word i, at bit bits * f, is input 16 * f + i of the block. So the codes of 16
consecutive inputs are one field of 16 words, which is one step of a tensor core, and a tile of rows of one block is
one run of memory.

The weights are the left operand of the tensor core and the inputs the right one, eight columns at least: one row of
inputs costs no more than eight. Each group's partial sum is multiplied by its scale once, outside of the inner loop.

Instructions, not bandwidth, bound a 2-bit product, so a code becomes a 16-bit float in two of them, for two codes
at a time: `(word & mask) | magic` puts the code into the mantissa of a power of two, and subtracting that power and the
grid's zero leaves `code - zero`, exactly. Several fields share one shift, because the mantissa has room for them.
Where groups have zeros of their own, what is left of them is multiplied by the sum of the group's inputs. Where scales
have two levels a group is one field, and the steps of four fields are one word of 32 bits, whose nibbles become floats
in the same way. A group's scale and minimum are rounded to the type of the inputs and make the level a weight of that
type in one more instruction, so that the tensor core sums all groups: a sum for each takes more instructions.

Sums are in float32 and in a fixed order; nothing is atomic, so a product repeats to the last bit.
"""

# Triton compiles this file's functions; their Python types mean nothing.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def mantissa_bits(dtype: tl.dtype) -> int:
    """Bits of the mantissa of a 16-bit float, or 0 for any other type."""
    if dtype == tl.float16:
        return 10
    return 7 if dtype == tl.bfloat16 else 0


@triton.constexpr_function
def fields_per_shift(bits: int, dtype: tl.dtype) -> int:
    """How many neighbouring fields fit into the mantissa at once, two bits above its end."""
    return max(1, 1 + (mantissa_bits(dtype) - bits - 2) // bits)  # pyright: ignore


@triton.constexpr_function
def field_shift(field: int, bits: int, dtype: tl.dtype) -> int:
    """Shift to the right (to the left where negative) that brings `field` and its neighbours into the mantissa."""
    return bits * (field - field % fields_per_shift(bits, dtype)) - 2  # pyright: ignore


@triton.constexpr_function
def part_zero(piece: int, bits: int, zero: float) -> float:
    """The zero of a piece of a code. An 8-bit one has two of four bits: 16 * (high - 7.5) + (low - (zero - 120))."""
    if bits < 8:
        return zero
    return 7.5 if piece == 1 else zero - 16 * 7.5


@triton.constexpr_function
def field_constants(field: int, bits: int, dtype: tl.dtype, zero: float) -> tuple[int, int, int]:
    """Mask and magic number of `field` after its shift, and the bits of the float to be subtracted: 16 bits each.

    With the code at bit p of a mantissa of m bits, magic is 2**(m - p) and magic + code * 2**p (as bits) is the float
    2**(m - p) + code. Its last bit is worth 2**-p <= 1/4, so the zero, a multiple of 1/2, is exact there too.
    """
    position = 2 + bits * (field % fields_per_shift(bits, dtype))  # pyright: ignore
    mantissa = mantissa_bits(dtype)
    exponent_bias = 15 if dtype == tl.float16 else 127
    mask = (2**bits - 1) << position
    magic = (exponent_bias + mantissa - position) << mantissa
    return mask, magic, magic + (int(2 * zero) << (position - 1))  # zero at bit `position`


@triton.constexpr_function
def shift_assembly(field: int, bits: int, dtype: tl.dtype) -> str:
    """PTX that shifts two words at once; bits that cross from one word to the other are masked out later."""
    shift = field_shift(field, bits, dtype)
    return f"shl.b32 $0, $1, {-shift};" if shift < 0 else f"shr.b32 $0, $1, {shift};"


@triton.constexpr_function
def level_assembly(field: int, bits: int, dtype: tl.dtype, zero: float) -> str:
    """PTX from two shifted words to two levels, code - zero."""
    mask, magic, subtrahend = field_constants(field, bits, dtype, zero)
    if dtype == tl.float16:
        subtract = f"mov.b32 c, {subtrahend * 0x10001:#x}; sub.rn.f16x2 $0, t, c;"
    else:  # 1 * t + (-c): the form of bfloat16 subtraction that GPUs before Hopper have
        negative = (subtrahend | 0x8000) * 0x10001
        subtract = f"mov.b32 c, {negative:#x}; mov.b32 o, 0x3f803f80; fma.rn.bf16x2 $0, t, o, c;"
    both = f"lop3.b32 t, $1, {mask * 0x10001:#x}, {magic * 0x10001:#x}, 0xea;"  # (a & b) | c
    return "{ .reg .b32 t, c, o; " + both + " " + subtract + " }"


@triton.jit
def shifted(words, FIELD: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """The words as `level` wants them for this field and its neighbours."""
    if ASM:
        text: tl.constexpr = shift_assembly(FIELD, BITS, DTYPE)
        words = tl.inline_asm_elementwise(text, "=r,r", [words], tl.uint16, is_pure=True, pack=2)
    return words


@triton.jit
def level(
    words,
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    DTYPE: tl.constexpr,
    ASM: tl.constexpr,
):
    """code - zero of one field, exact, from what `shifted` gives: in DTYPE, or without PTX in float32."""
    if ASM:
        text: tl.constexpr = level_assembly(FIELD, BITS, DTYPE, ZERO)
        bits = tl.inline_asm_elementwise(text, "=r,r", [words], tl.uint16, is_pure=True, pack=2)
        return bits.to(DTYPE, bitcast=True)
    else:  # without this word the compiler goes on after the return
        code = (words >> (BITS * FIELD)) & (2**BITS - 1)
        return code.to(tl.float32) - ZERO


@triton.jit
def of_groups(source, group, output, padded_out, there, WHOLE: tl.constexpr):
    """What outputs have for their groups, of source (groups, padded_out); zero where nothing is there."""
    place = source + group[:, None] * padded_out + output[None, :]
    return tl.load(place) if WHOLE else tl.load(place, there[:, None], other=0)


@triton.jit
def nibble(words, FIELD: tl.constexpr, PLACE: tl.constexpr):
    """Four bits, from bit PLACE on, of byte FIELD % 4 of 32-bit words, in float32: in the mantissa of a power of two,
    which is subtracted.
    """
    shifted = words >> (FIELD % 4 // 2 * 16)
    place: tl.constexpr = FIELD % 2 * 8 + PLACE
    lifted = (shifted & (15 << place)) | ((127 + 23 - place) << 23)
    return lifted.to(tl.float32, bitcast=True) - 2.0 ** (23 - place)


@triton.constexpr_function
def step_assembly(field: int, dtype: tl.dtype) -> str:
    """PTX to one word with the scale of a group, lower, and its offset: $3 times the nibble in byte `field` of $1, and
    $5 times that of $2, in 16 bits each. A byte below the exponent of 2**23 is the float 2**23 + nibble; $4 and $6 are
    $3 and $5 times -2**23.
    """
    place = f"0x4b000000, {0x7540 | field % 4:#x};"
    lifted = f"prmt.b32 s, $1, {place} prmt.b32 o, $2, {place}"
    scaled = "fma.rn.f32 s, s, $3, $4; fma.rn.f32 o, o, $5, $6;"
    if dtype == tl.float16:  # Turing, which has no bfloat16, rounds one at a time
        rounded = "cvt.rn.f16.f32 l, s; cvt.rn.f16.f32 h, o; mov.b32 $0, {l, h};"
    else:
        rounded = "cvt.rn.bf16x2.f32 $0, o, s;"
    return "{ .reg .b16 l, h; .reg .b32 s, o; " + f"{lifted} {scaled} {rounded}" + " }"


@triton.constexpr_function
def weight_assembly(dtype: tl.dtype) -> str:
    """PTX from two levels of a group and its word of `step_assembly`, which comes twice, to two weights."""
    kind = "f16x2" if dtype == tl.float16 else "bf16x2"
    both = "mov.b32 {l, h}, $2; mov.b32 s, {l, l}; mov.b32 o, {h, h};"
    return "{ .reg .b16 l, h; .reg .b32 s, o; " + f"{both} fma.rn.{kind} $0, $1, s, o;" + " } // $3"


@triton.jit
def stepped_weights(
    levels, factor, low, four, FIELD: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr
):
    """The weights of a field, rounded once to DTYPE: levels times a scale, plus an offset, which are rounded before.

    They are steps, in the word of four fields, of the block's factor and low, which are float32.
    """
    if ASM:
        low_nibbles, high_nibbles = four & 0x0F0F0F0F, (four >> 4) & 0x0F0F0F0F
        given = [low_nibbles, high_nibbles, factor, factor * -(2.0**23), low, low * -(2.0**23)]
        step_text: tl.constexpr = step_assembly(FIELD, DTYPE)
        steps = tl.inline_asm_elementwise(
            step_text, "=r,r,r,r,r,r,r", given, tl.int32, is_pure=True, pack=1
        )
        bits = levels.to(tl.uint16, bitcast=True)
        steps = tl.broadcast_to(steps[:, :, None], bits.shape)
        text: tl.constexpr = weight_assembly(DTYPE)
        weights = tl.inline_asm_elementwise(
            text, "=r,r,r,r", [bits, steps], tl.uint16, is_pure=True, pack=2
        )
        return weights.to(DTYPE, bitcast=True)
    else:  # without this word the compiler goes on after the return
        scale = (factor * nibble(four, FIELD, 0)).to(DTYPE).to(tl.float32)
        offset = (low * nibble(four, FIELD, 4)).to(DTYPE).to(tl.float32)
        return (levels * scale[:, :, None] + offset[:, :, None]).to(DTYPE).to(tl.float32)


@triton.jit
def add_field(
    tile,
    fields,  # what `shifted` gave for the field before
    values,
    part,
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    DTYPE: tl.constexpr,
    ASM: tl.constexpr,
):
    """(fields, part) with the products of one field of the words added to part. An 8-bit code is two of four bits
    (part_zero), each exact in bfloat16 as well.
    """
    PART: tl.constexpr = 4 if BITS == 8 else BITS
    PARTS: tl.constexpr = BITS // PART
    SHARED: tl.constexpr = fields_per_shift(PART, DTYPE)
    values = values if ASM else values.to(tl.float32)
    for piece in tl.static_range(PARTS):
        if (FIELD * PARTS + piece) % SHARED == 0:
            fields = shifted(tile, FIELD * PARTS + piece, PART, DTYPE, ASM)
        levels = level(
            fields, FIELD * PARTS + piece, PART, part_zero(piece, BITS, ZERO), DTYPE, ASM
        )
        if piece == 1:
            levels = levels * 16
        part = tl.dot(levels, values, part, input_precision="ieee")
    return fields, part


@triton.jit
def add_stepped(
    tile,
    fields,  # what `shifted` gave for the field before
    values,
    total,
    factor,  # of a block, and its minimum
    low,
    four,  # the steps of four fields
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    DTYPE: tl.constexpr,
    ASM: tl.constexpr,
):
    """(fields, total) with the products of one field, which is a group with steps of the block's scales."""
    if FIELD % fields_per_shift(BITS, DTYPE) == 0:
        fields = shifted(tile, FIELD, BITS, DTYPE, ASM)
    levels = level(fields, FIELD, BITS, 0.0, DTYPE, ASM)
    factor, low = factor.to(tl.float32), -low.to(tl.float32)
    weights = stepped_weights(levels, factor, low, four, FIELD, DTYPE, ASM)
    values = values if ASM else values.to(tl.float32)
    return fields, tl.dot(weights, values, total, input_precision="ieee")


@triton.jit
def of_rows(product, seen, scale, zeros, output, ZERO: tl.constexpr):
    """The products of rows that have one scale, and one zero where they have their own."""
    if zeros is not None:
        left = ZERO - tl.load(zeros + output).to(tl.float32)
        product += left[:, None] * tl.sum(seen, axis=0)[None, :]
    return product * tl.load(scale + output).to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["rows"])  # one compilation for every number of rows
def matmul_kernel(
    inputs,  # (rows, in) of any float type
    words,  # (blocks, padded_out, 16) uint16, where the weight's rows begin
    scale,  # (groups, padded_out), likewise
    zeros,  # (groups, padded_out) uint8, likewise, or None
    minimum,  # as scale, or None
    steps,  # (in / 64, padded_out) int32, likewise, or None: scales have one level
    outputs,  # (rows, out), as inputs
    rows,
    in_features,
    out_features,
    padded_out,  # rows from block to block and group to group, a multiple of every TILE
    BITS: tl.constexpr,
    ZERO: tl.constexpr,  # of the grid; where groups have their own, any that the assembly can subtract
    GROUP: tl.constexpr,  # inputs per scale, a multiple of 16; 0: one scale per output
    RUN: tl.constexpr,  # fields of a block that share a scale: gcd(GROUP, block) / 16
    EVEN: tl.constexpr,  # in_features is a multiple of SLICES * UNROLL blocks
    ASM: tl.constexpr,  # decode by PTX; else (in Triton's interpreter) in float32
    COLUMNS: tl.constexpr,  # rows of inputs, padded to 8, 16, 32 or 64
    TILE: tl.constexpr,  # outputs per program
    SLICES: tl.constexpr,  # warps, each with every SLICES-th block
    UNROLL: tl.constexpr,  # blocks per warp and turn of the loop
    STAGES: tl.constexpr,  # turns whose loads are under way
):
    """outputs = inputs @ weight.T for a TILE of outputs and all rows."""
    FIELDS: tl.constexpr = 16 // BITS
    DTYPE: tl.constexpr = inputs.dtype.element_ty
    output = tl.program_id(0) * TILE + tl.arange(0, TILE)
    word = tl.arange(0, 16)
    column = tl.arange(0, COLUMNS)
    wanted = (column < rows)[None, None, :]
    blocks = tl.cdiv(in_features, 16 * FIELDS)
    total = tl.zeros((SLICES, TILE, COLUMNS), tl.float32)
    seen = tl.zeros((SLICES, COLUMNS), tl.float32)  # the sum of a group's inputs
    for first in tl.range(0, blocks, SLICES * UNROLL, num_stages=STAGES):
        for step in tl.static_range(UNROLL):
            block = first + step * SLICES + tl.arange(0, SLICES)
            inside = block < blocks
            address = (block[:, None, None] * padded_out + output[None, :, None]) * 16 + word
            source = words + address
            tile = tl.load(source) if EVEN else tl.load(source, inside[:, None, None], other=0)
            fields, part = tile, tl.zeros((SLICES, TILE, COLUMNS), tl.float32)
            for field in tl.static_range(FIELDS):
                index = block[:, None] * (16 * FIELDS) + field * 16 + word[None, :]
                there = wanted if EVEN else wanted & (index < in_features)[:, :, None]
                source = inputs + column[None, None, :] * in_features + index[:, :, None]
                values = tl.load(source, mask=there, other=0.0)
                if zeros is not None:
                    seen += tl.sum(values.to(tl.float32), axis=1)
                start = block * (16 * FIELDS) + field * 16
                some = start < in_features
                group = start // max(GROUP, 1)
                if steps is not None:
                    if field % RUN == 0:
                        factor = of_groups(scale, group, output, padded_out, some, EVEN)
                        low = of_groups(minimum, group, output, padded_out, some, EVEN)
                    if field % 4 == 0:
                        four = of_groups(steps, start // 64, output, padded_out, some, EVEN)
                    fields, total = add_stepped(
                        tile, fields, values, total, factor, low, four, field, BITS, DTYPE, ASM
                    )
                else:
                    fields, part = add_field(
                        tile, fields, values, part, field, BITS, ZERO, DTYPE, ASM
                    )
                if steps is None and GROUP > 0 and (field + 1) % RUN == 0:
                    factor = of_groups(scale, group, output, padded_out, some, EVEN)
                    if zeros is not None:
                        zero = of_groups(zeros, group, output, padded_out, some, EVEN)
                        left = ZERO - zero.to(tl.float32)
                        part += left[:, :, None] * seen[:, None, :]
                        seen = tl.zeros((SLICES, COLUMNS), tl.float32)
                    total += part * factor.to(tl.float32)[:, :, None]
                    part = tl.zeros((SLICES, TILE, COLUMNS), tl.float32)
            total = total if GROUP > 0 else total + part
    product = tl.sum(total, axis=0)
    if GROUP == 0:
        product = of_rows(product, seen, scale, zeros, output, ZERO)
    target = outputs + column[None, :] * out_features + output[:, None]
    tl.store(target, product.to(DTYPE), (output < out_features)[:, None] & (column < rows)[None, :])


@triton.jit
def dequantize_kernel(
    words,  # (blocks, padded_out, 16) uint16
    scale,  # (groups, padded_out)
    zeros,  # (groups, padded_out) uint8, or None
    minimum,  # as scale, or None
    steps,  # (in / 64, padded_out) int32, or None
    weight,  # (out, in), the result
    in_features,
    out_features,
    padded_out,
    group,  # inputs per scale; in_features where there is one per output
    BITS: tl.constexpr,
    ZERO: tl.constexpr,
    TILE: tl.constexpr,
):
    """The weight as kernels.reference.dequantize gives it, for a TILE of outputs and one block of inputs."""
    FIELDS: tl.constexpr = 16 // BITS
    output = tl.program_id(0) * TILE + tl.arange(0, TILE)
    block = tl.program_id(1)
    word = tl.arange(0, 16)
    tile = tl.load(words + (block * padded_out + output[:, None]) * 16 + word[None, :])
    for field in tl.static_range(FIELDS):
        index = (block * FIELDS + field) * 16 + word
        inside = index < in_features
        place = (index // group)[None, :] * padded_out + output[:, None]
        factor = tl.load(scale + place, mask=inside[None, :], other=0.0).to(tl.float32)
        levels = level(tile, field, BITS, ZERO, tl.float32, False)
        if zeros is not None:
            zero = tl.load(zeros + place, mask=inside[None, :], other=0).to(tl.float32)
            levels += ZERO - zero
        if steps is not None:
            low = tl.load(minimum + place, mask=inside[None, :], other=0.0).to(tl.float32)
            four_place = steps + (index // 64)[None, :] * padded_out + output[:, None]
            four = tl.load(four_place, mask=inside[None, :], other=0)
            value = factor * nibble(four, field, 0) * levels - low * nibble(four, field, 4)
        else:
            value = factor * levels
        target = weight + output[:, None].to(tl.int64) * in_features + index[None, :]
        kept = (output < out_features)[:, None] & inside[None, :]
        tl.store(target, value.to(weight.dtype.element_ty), mask=kept)
