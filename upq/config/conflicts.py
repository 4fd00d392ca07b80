"""Settings of a run that exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upq.config.precision import Precision
from upq.errors import UserError

if TYPE_CHECKING:
    from upq.config.schema import Int2Config, Int4Config, PrecisionConfig

#: Inputs of a group of grid q2_k (kernels.packing.NESTED_GROUP, which a config does not import).
TWO_LEVEL_GROUP = 16
#: Inputs that GGUF stores together in Q2_K, and the grids that are of INT2 alone.
GGUF_BLOCK, INT2_GRIDS = 256, ("q2_k", "gguf")


def check_precision(name: str, config: PrecisionConfig) -> None:
    """Raise UserError("bad_config") for settings that exclude each other."""
    if config.grid in INT2_GRIDS and name != Precision.INT2.key:
        raise UserError(
            "bad_config", f"{name}.grid is {config.grid}, which is a grid of INT2.", "Use signed."
        )
    if config.rounding == "ldlq" and not config.blockwise.tokens:
        raise UserError(
            "bad_config",
            f"{name}.rounding is ldlq, which needs calibration tokens; {name}.blockwise.tokens is 0.",
        )
    if config.codebook == "lattice" and (config.rounding != "ldlq" or config.grid != "odd"):
        raise UserError(
            "bad_config",
            f"{name}.codebook is lattice; expected {name}.rounding=ldlq and {name}.grid=odd with it.",
        )


def check_bases(int4: Int4Config, int2: Int2Config) -> None:
    """Raise UserError("bad_config") where INT4 and INT2 need two rewritten models, or INT2 starts in another basis."""
    both = int4.basis and int2.basis
    if int4.basis != int2.basis and (both or int2.start == "int4"):
        why = "only one rewritten model is kept" if both else "int2.start is int4"
        raise UserError(
            "bad_config",
            f"int4 and int2 have different absorbed rotations ({_basis_words(int4)}; {_basis_words(int2)}), and {why}.",
            "Give both the same rotation, absorbed_kind and rotation_block"
            + ("." if both else ", or set int2.start=fp16."),
        )


def _basis_words(config: PrecisionConfig) -> str:
    if config.basis is None:
        return f"rotation={config.rotation}"
    kind, block = config.basis
    return f"rotation=absorbed, {kind}" + (f" in blocks of {block}" if block else "")
