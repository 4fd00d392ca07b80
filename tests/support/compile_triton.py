"""Compiles the Triton kernels for an H100, which needs no GPU, and prints what became of them as JSON.

python -m tests.support.compile_triton
"""

import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.gpu import attention, decoding
from kernels.gpu import norms as triton_norm
from kernels.gpu import training as triton_training
from kernels.gpu.products import matmul_kernel
from kernels.gpu.tuning import CANDIDATES

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
H100 = GPUTarget("cuda", 90, 32)
#: The oldest and the newest kind of GPU that the products compile for as well; the oldest has no bfloat16.
OTHERS = (GPUTarget("cuda", 75, 32), GPUTarget("cuda", 120, 32))
#: (bits, type, columns, grid): integer and subtraction instructions allowed for each weight.
CASES = {
    (2, "fp16", 8, "middle"): 1.5,
    (2, "bf16", 8, "middle"): 1.6,
    (2, "bf16", 8, "zeros"): 1.8,
    (2, "bf16", 8, "steps"): 2.4,
    (4, "bf16", 16, "middle"): 2.1,
    (4, "bf16", 16, "signed"): 2.1,
    (8, "fp16", 8, "middle"): 3.7,
    (8, "fp16", 8, "signed"): 3.7,
}
#: What the grids of CASES have beside codes and a scale; and inputs that share a scale.
GRIDS = {"middle": (), "signed": (), "zeros": ("zeros",), "steps": ("minimum", "steps")}
GROUPS = {"steps": 192}
NUMBERS = ("rows", "in_features", "out_features", "padded_out")
#: What is compiled of a decoding step, with heads of 128 features and four queries a key, as Llama-3.1-8B has them, and
#: for products that want transformed activations in blocks of 64 and 256.
STEP_CASES: list[tuple[Any, dict[str, Any]]] = [
    (decoding._rotate_kernel, {"SIZE": 128, "NORM": True}),
    (
        attention._attention_kernel,
        {
            **{"SIZE": 128, "SHARE": 4, "TILE": 16, "PLAIN": False},
            **{"SPLIT": attention.SPLIT, "BLOCK": attention.BLOCK},
        },
    ),
]
for block in (1, 64, 256):
    transform = {"TRANSFORM": block, "PLAIN": False}
    transform |= {"factors": None, "signs": None} if block == 1 else {}
    heads = max(1, 16 * block // 128 if block > 1 else 1)
    STEP_CASES += [
        (decoding._add_norm_kernel, {"size": 4096, "WIDTH": 4096, "num_warps": 8, **transform}),
        (
            decoding._gate_kernel,
            {
                **{"WIDTH": 4096 if block == 256 else 1024},
                **{"num_warps": 8 if block == 256 else 4, **transform},
            },
        ),
        (
            attention._join_kernel,
            {
                **{"SIZE": 128, "WIDTH": 32, "HEADS": heads},
                **{"CHUNK": min(32, attention.JOINED // (heads * 128))},
                **{"num_warps": 4 if block == 1 else 8, **transform},
            },
        ),
    ]
#: What is compiled of triton_training: columns that share a scale, whether groups have zeros, and
#: whether scales are settled before.
TRAINING_CASES = [
    (name, group, zeros, settled)
    for name in ("forward_kernel", "backward_kernel")
    for group, zeros, settled in (
        (64, False, False),
        (576, False, False),
        (8192, True, False),
        (16, True, True),
    )
]
#: What is compiled of triton_norm: size of a row, and whether gains are trained.
NORM_CASES = [
    (name, size, trains)
    for name in ("norm_kernel", "norm_backward_kernel")
    for size, trains in ((576, False), (576, True), (8192, True))
]
#: Parameters of the kernels of a decoding step that are not pointers to bfloat16.
TYPES = {
    **dict.fromkeys(("heads", "kv_heads", "capacity", "splits", "size"), "i32"),
    **dict.fromkeys(("query_stride", "key_stride", "value_stride"), "i32"),
    **dict.fromkeys(("gate_stride", "up_stride"), "i32"),
    **dict.fromkeys(("epsilon", "scaling"), "fp32"),
    **dict.fromkeys(("sums", "heights"), "*fp32"),
    "positions": "*i64",
}


def compiled(
    bits: int, dtype: str, columns: int, grid: str, target: GPUTarget = H100
) -> tuple[Any, int]:
    """The kernel for one case, and how many weights a lane decodes in one turn of its loop."""
    config = max(CANDIDATES[columns])  # the widest tile
    block, group = 256 // bits, GROUPS.get(grid, 64)
    zero = {"signed": 2.0 ** (bits - 1), "steps": 0.0}.get(grid, (2**bits - 1) / 2)
    absent = {"zeros", "minimum", "steps"}.difference(GRIDS[grid])
    constants = {
        **{"BITS": bits, "ZERO": zero, "GROUP": group, "RUN": math.gcd(group, block) // 16},
        **{"EVEN": True, "ASM": True, "COLUMNS": columns, "TILE": config.tile},
        **{"SLICES": config.slices, "UNROLL": config.unroll, "STAGES": config.stages},
        **dict.fromkeys(absent),
    }
    types = {
        **{"inputs": "*" + dtype, "words": "*i16", "outputs": "*" + dtype},
        **{"scale": "*fp16", "zeros": "*u8", "minimum": "*fp16", "steps": "*i32"},
        **dict.fromkeys(NUMBERS, "i32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    names = matmul_kernel.arg_names
    signature = {name: types[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind != "constexpr" and name != "rows"
    }
    source = ASTSource(matmul_kernel, signature, values, aligned)
    options = {"num_warps": config.slices}
    lanes = 32 * config.slices
    weights = config.tile * block * config.slices * config.unroll // lanes
    return triton.compile(source, target=target, options=options), weights


def facts(bits: int, dtype: str, columns: int, grid: str) -> dict[str, float]:
    """Tensor-core instructions, spilled bytes, and decoding instructions per weight of the main loop."""
    kernel, weights = compiled(bits, dtype, columns, grid)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        code = _tool("cuobjdump", "-sass", str(binary))
        decoding = len(re.findall(r"\s(?:LOP3|SHF|HADD2|HFMA2)[.\s]", code))
    return {
        "mma": code.count("HMMA"),
        "spilled_bytes": _spilled(kernel),
        "decoding_per_weight": decoding / weights,
        "budget": CASES[bits, dtype, columns, grid],
    }


def _spilled(kernel: Any) -> int:
    """Bytes that a kernel keeps in memory because it has no registers for them."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(binary))
    found = re.search(r"STACK:(\d+)", usage)
    return int(found.group(1)) if found else -1


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def step_facts(kernel: Any, given: dict[str, Any]) -> dict[str, float]:
    """Shared and spilled bytes of a kernel of a decoding step in bfloat16, compiled with these constants."""
    constants = {name: value for name, value in given.items() if name in kernel.arg_names}
    signature = {
        one: "constexpr" if one in constants else TYPES.get(one, "*bf16")
        for one in kernel.arg_names
    }
    names = list(signature)
    values = {(names.index(one),): value for one, value in constants.items()}
    options = {"num_warps": given.get("num_warps", 4)}
    source = ASTSource(kernel, signature, values, {})
    made = triton.compile(source, target=H100, options=options)
    return {"shared_bytes": made.metadata.shared, "spilled_bytes": _spilled(made)}


def training_facts(name: str, group: int, zeros: bool, settled: bool) -> dict[str, float]:
    """Of a kernel of triton_training for one group size, with zeros or without, settled before or not."""
    block = min(triton.next_power_of_2(group), triton_training.TILE)
    constants = {
        **{"LEVELS": 4, "GROUP": group, "BLOCK": block, "MANY": triton_training.TILE // block},
        **{"SETTLED": settled, "PLAIN": False},
        **({} if zeros else {"zero": None, "zero_gradient": None}),
    }
    types = {
        **dict.fromkeys(("quantized", "gradient"), "*bf16"),
        **{"groups": "i32", "smallest": "fp32", "reach": "fp32"},
    }
    return _float_facts(getattr(triton_training, name), constants, types, 4)


def norm_facts(name: str, size: int, trains: bool) -> dict[str, float]:
    """Of a kernel of triton_norm for rows of one size, with gains or without."""
    shape = triton_norm._shape(size)
    constants = {
        **{"WIDTH": shape["WIDTH"], "PLAIN": False},
        **({} if trains else {"gain": None, "by_gain": None}),
    }
    types = {
        **dict.fromkeys(("inputs", "outputs", "gradient", "by_inputs"), "*bf16"),
        **{"size": "i32", "rows": "i32", "epsilon": "fp32"},
    }
    return _float_facts(getattr(triton_norm, name), constants, types, shape["num_warps"])


def _float_facts(
    kernel: Any, constants: dict[str, Any], types: dict[str, str], warps: int
) -> dict[str, float]:
    """Spilled and shared bytes, and divisions that round to nearest and others; pointers are to float32 by default."""
    names = kernel.arg_names
    signature = {one: "constexpr" if one in constants else types.get(one, "*fp32") for one in names}
    values = {(names.index(one),): value for one, value in constants.items() if one in names}
    source = ASTSource(kernel, signature, values, {})
    options = {"enable_fp_fusion": False, "num_warps": warps}
    made = triton.compile(source, target=H100, options=options)
    text = made.asm["ptx"]
    return {
        "spilled_bytes": _spilled(made),
        "shared_bytes": made.metadata.shared,
        "exact_divisions": text.count("div.rn.f32"),
        "other_divisions": len(re.findall(r"div\.(?:full|approx)", text)),
    }


if __name__ == "__main__":
    products = {str(case): facts(*case) for case in CASES}
    for target, grid in itertools.product(OTHERS, GRIDS):
        compiled(2, "fp16", 8, grid, target)  # raises where it cannot be
    between = {
        f"{kernel.__name__} {given}": step_facts(kernel, given) for kernel, given in STEP_CASES
    }
    training = {str(case): training_facts(*case) for case in TRAINING_CASES}
    norms = {str(case): norm_facts(*case) for case in NORM_CASES}
    found = {"products": products, "between": between, "training": training, "norms": norms}
    sys.stdout.write(json.dumps(found, indent=1))
