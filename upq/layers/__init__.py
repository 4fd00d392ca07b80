"""A layer of few bits: its grid, its training form, its packed form.

Grids are the zero-free odd ones of UPQ: weight = scale * (code - zero), code an unsigned integer. INT2 is SEQ (levels
-1.5, -0.5, 0.5, 1.5 times the scale; UPQ section 3.2, ParetoQ), INT4 the same family with sixteen levels, INT8 with
256. A grid is pure functions: `fit` finds scales and `encode` gives codes; `kernels.reference.dequantize` says what
codes stand for. `fake_quantize` is both in one step, with the straight-through gradient, defined once for all grids.
"""

from upq.layers.fixed_codes import FixedCodesLinear, fix_codes
from upq.layers.grid import INT2, INT4, INT8, Grid, storable
from upq.layers.linear import (
    FakeQuantLinear,
    Latent,
    PackedEmbedding,
    PackedLinear,
    fake_quant_layers,
    memory_bytes,
    packed_layers,
    replace_module,
    set_parameters,
    swap_linears,
)

__all__ = [
    "INT2",
    "INT4",
    "INT8",
    "FakeQuantLinear",
    "FixedCodesLinear",
    "Grid",
    "Latent",
    "PackedEmbedding",
    "PackedLinear",
    "fake_quant_layers",
    "fix_codes",
    "memory_bytes",
    "packed_layers",
    "replace_module",
    "set_parameters",
    "storable",
    "swap_linears",
]
