"""The zero-free odd grids of UPQ: weight = scale * (code - zero), code an unsigned integer.

INT2 is SEQ (levels -1.5, -0.5, 0.5, 1.5 times the scale; UPQ section 3.2, ParetoQ), INT4 the same family with
sixteen levels, INT8 with 256. A grid is three pure functions, fit, encode and decode; `fake_quantize` is
decode(encode(.)) with the straight-through gradient, defined once for all grids.
"""

from upq.quantizers.fake import fake_quantize
from upq.quantizers.grid import GRIDS, INT2, INT4, INT8, Grid

__all__ = ["GRIDS", "INT2", "INT4", "INT8", "Grid", "fake_quantize"]
