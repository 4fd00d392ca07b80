"""The C decoder's structures, field by field as in csrc/decoder.h."""

from __future__ import annotations

import ctypes

from kernels.cpu import panels

#: The matrices of a block in the order of the structure, and where transformers keeps each.
PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class Block(ctypes.Structure):
    """csrc/decoder.h, Block."""

    _fields_ = [
        *((name, panels.Matrix) for name in PROJECTIONS),
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("key_norm", ctypes.c_void_p),
        ("window", ctypes.c_int32),
    ]


class Model(ctypes.Structure):
    """csrc/decoder.h, Model."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("hidden", "blocks", "heads", "kv_heads", "head_size", "inner")
        ),
        ("vocabulary", ctypes.c_int32),
        ("span", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("block", ctypes.POINTER(Block)),
        ("final_norm", ctypes.c_void_p),
        ("embedding", panels.Matrix),
        ("head", panels.Matrix),
    ]
