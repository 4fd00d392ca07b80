"""A layer of few bits: its grid, its training form, its packed form.

Grids are the zero-free odd ones of UPQ: weight = scale * (code - zero), code an unsigned integer. INT2 is SEQ (levels
-1.5, -0.5, 0.5, 1.5 times the scale; UPQ section 3.2, ParetoQ), INT4 the same family with sixteen levels, INT8 with
256. A grid is three pure functions, fit, encode and decode; `fake_quantize` is decode(encode(.)) with the
straight-through gradient, defined once for all grids.
"""
