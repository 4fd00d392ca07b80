"""A layer of few bits: its grid, its training form, its packed form.

A grid is pure functions: `fit` finds scales, `settled` says at which ones weights are rounded, `encode` gives codes
and `pack` what is stored; `kernels.reference.dequantize` says what that stands for. There are four: the odd one of UPQ
(INT2 is SEQ, levels -1.5, -0.5, 0.5, 1.5 times the scale; UPQ section 3.2, ParetoQ), the signed one of GGUF's Q4_0 and
Q2_0, that of GGUF's Q2_K with two levels of scales, and EfficientQAT's with whole zeros. `fake_quantize` rounds with
the straight-through gradient, defined once for all of them.
"""

from upq.layers.fixed_codes import FixedCodesLinear, fix_codes
from upq.layers.form import Form, Forms
from upq.layers.grid import INT2, INT4, Grid, storable
from upq.layers.grids import GRIDS, grid_of
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
from upq.layers.two_levels import MOST_STEPS, Steps, TwoLevelGrid
from upq.layers.zeros import INT8

__all__ = [
    "GRIDS",
    "INT2",
    "INT4",
    "INT8",
    "MOST_STEPS",
    "FakeQuantLinear",
    "FixedCodesLinear",
    "Form",
    "Forms",
    "Grid",
    "Latent",
    "PackedEmbedding",
    "PackedLinear",
    "Steps",
    "TwoLevelGrid",
    "fake_quant_layers",
    "fix_codes",
    "grid_of",
    "memory_bytes",
    "packed_layers",
    "replace_module",
    "set_parameters",
    "storable",
    "swap_linears",
]
