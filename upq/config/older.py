"""Configs of older versions, read as this version writes them."""

from __future__ import annotations

from typing import Any

from upq.config.precision import QUANTIZED

CONFIG_VERSION = 2


def upgraded(values: Any) -> Any:
    """Values of version 1, whose INT2 had its block-wise training under the name warm_start, as version 2."""
    if not isinstance(values, dict) or values.get("version") != 1:
        return values
    values = {**values, "version": CONFIG_VERSION}
    if "warm_start" in (int2 := values.get("int2", {})):
        values["int2"] = {name: value for name, value in int2.items() if name != "warm_start"}
        values["int2"]["blockwise"] = int2["warm_start"]
    if values.get("method") == "rtn":  # trained nothing, whatever its settings said
        nothing = {"blockwise": {"tokens": 0}, "distill": {"tokens": 0}}
        for precision in QUANTIZED:
            values[precision.key] = {**values.get(precision.key, {}), **nothing}
    return values
