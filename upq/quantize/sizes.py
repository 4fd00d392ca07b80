"""Bytes of a model's packed layers and inputs of its layers, from its shape alone."""

from __future__ import annotations

from kernels.packing import nested_block
from upq.config import PrecisionConfig

Layers = dict[str, tuple[int, int]]

#: Bytes of a 16-bit number, and of a float32 one.
HALF, FLOAT = 2, 4
#: Entries of UniSVQ's lattice: A is 4 x 4, B has 4.
LATTICE_ENTRIES = 4 * 4 + 4


def packed_bytes(layers: Layers, bits: int, config: PrecisionConfig) -> int:
    """Packed layers, (out, in) by name: codes, float16 scales and minimums, zeros or steps in a byte, float16 vectors
    of a rotation, float32 lattice.
    """
    return sum(_packed_bytes(rows, columns, bits, config) for rows, columns in layers.values())


def _packed_bytes(rows: int, columns: int, bits: int, config: PrecisionConfig) -> int:
    grid, group_size = config.form(columns)
    groups = rows * (columns // (group_size or columns))
    size = rows * columns * bits // 8
    if grid == "q2_k":  # scale and minimum of every block, a byte of steps of every group
        size += groups + 2 * HALF * rows * (columns // nested_block(columns))
    else:
        size += groups * (HALF + 1 if grid == "integer_zero" else HALF)
    size += HALF * {"input": columns, "both": columns + rows}.get(config.rotation, 0)
    return size + (FLOAT * LATTICE_ENTRIES if config.codebook == "lattice" else 0)


def shared_widths(layers: Layers) -> list[int]:
    """Inputs of each tensor that layers read; layers of one module and width are taken to read the same one."""
    readers = {(name.rpartition(".")[0], columns) for name, (_, columns) in layers.items()}
    return [columns for _, columns in readers]
